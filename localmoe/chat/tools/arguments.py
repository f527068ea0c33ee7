"""Arguments of calls: JSON that nobody has checked, and text that a schema gives its types."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from localmoe.chat.messages import Tool

_WORDS = {"true": True, "false": False, "none": None, "null": None}
_KINDS: dict[str, tuple[type, ...]] = {
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


def read_json(text: str) -> Any:
    """Return the value of a JSON text. Raises ValueError, whatever the text is."""
    try:
        # Models write newlines into strings as they are.
        return json.loads(text, parse_constant=_refuse, parse_float=_finite_number, strict=False)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def object_text(value: Any) -> str:
    """Return an object of arguments as JSON text. Raises ValueError for anything else.

    A text that holds an object is taken for it, and None for an empty one.
    """
    if isinstance(value, str):
        value = read_json(value) if value.strip() else {}
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise ValueError(f"arguments must be a JSON object, not {type(value).__name__}")
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    # Half of a surrogate pair is no text that can be sent.
    return text if is_text(text) else json.dumps(value)


def is_text(text: str) -> bool:
    """Whether a text can be written as UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def typed(values: Iterable[tuple[str, str]], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments that came as text, each as the type which its schema asks for.

    What is no value of that type stays a text: whoever runs the tool can say what is wrong.
    """
    properties = schema.get("properties")
    known: Mapping[str, Any] = properties if isinstance(properties, Mapping) else {}
    return {name: typed_value(text, known.get(name)) for name, text in values}


def typed_value(text: str, schema: object) -> Any:
    """Return one value; texts, and values without a schema, stay as they are."""
    kinds = value_kinds(schema)
    others = [kind for kind in kinds if kind != "string"]
    if not others:
        return text
    word = text.strip()
    if word.lower() in _WORDS:
        value: Any = _WORDS[word.lower()]
    else:
        try:
            value = read_json(word)
        except ValueError:
            return text
    if "integer" in others and isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if any(_is_kind(value, kind) for kind in others) else text


def value_kinds(schema: object, depth: int = 0) -> list[str]:
    """Return the JSON types that a schema allows; empty where it does not say."""
    if not isinstance(schema, Mapping) or depth > 8:
        return []
    kind = schema.get("type")
    kinds = [kind] if isinstance(kind, str) else []
    if isinstance(kind, list):
        kinds = [each for each in kind if isinstance(each, str)]
    if not kinds and isinstance(schema.get("enum"), list):
        kinds = sorted({_kind_of(value) for value in schema["enum"]})
    for key in ("anyOf", "oneOf"):
        options = schema.get(key)
        if not kinds and isinstance(options, list):
            kinds = [kind for option in options for kind in value_kinds(option, depth + 1)]
    return kinds


def schema_of(tools: Iterable[Tool], name: str) -> Mapping[str, Any]:
    """Return the schema of a tool's arguments; empty for a tool that nobody offered."""
    return next((tool.parameters for tool in tools if tool.name == name), {})


def _is_kind(value: object, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _KINDS.get(kind, ()))


def _kind_of(value: object) -> str:
    if isinstance(value, str):
        return "string"
    return next((kind for kind in _KINDS if _is_kind(value, kind)), "string")


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def _finite_number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number
