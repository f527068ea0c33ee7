"""Syntaxes in which a call's arguments are one JSON object: hermes, Kimi, DeepSeek, Mistral."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from localmoe.chat.messages import Tool
from localmoe.chat.schema import SHARED, schema_text
from localmoe.chat.tools.arguments import object_text, read_json
from localmoe.chat.tools.format import Call, Malformed, Marker, Reading, inner, quoted
from localmoe.chat.tools.scanning import BracketScanner, MarkerScanner, Scanner

_KIMI_HEAD = re.compile(r"\s*(?:functions\.)?(\S+?)(?::(\d+))?\s*")
_MAX_NAME_CHARACTERS = 256
_MISTRAL_HEAD = re.compile(r"\s*([\w.\-:/]+)\s*(?:\[CALL_ID\]([\w\-]*))?\[ARGS\]\s*")


class Hermes:
    """<tool_call>{"name": ..., "arguments": {...}}</tool_call>."""

    openings = ("<tool_call>",)
    silent: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    markers = frozenset(("<tool_call>", "</tool_call>"))

    def scanner(self, opening: str) -> Scanner:
        """Return what finds the closing tag."""
        return MarkerScanner("</tool_call>")

    def read(self, block: str, tools: Sequence[Tool], is_over: bool) -> Reading:
        """Read one JSON object with a name and arguments."""
        return read_named(inner(block, "<tool_call>", "</tool_call>"), is_over)

    def grammar(self, tool: Tool, index: int, marker: Marker) -> str:
        """Return a rule for a call of one tool."""
        before, after = marker("<tool_call>"), marker("</tool_call>")
        return f'call_{index}: {before} "\\n" %json {named_schema(tool)} "\\n" {after}\n'


class Kimi:
    """<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{...}<|tool_call_end|>."""

    openings = ("<|tool_call_begin|>",)
    silent = ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>")
    first: tuple[str, ...] = ()
    markers = frozenset((*openings, *silent, "<|tool_call_argument_begin|>", "<|tool_call_end|>"))

    def scanner(self, opening: str) -> Scanner:
        """Return what finds the closing marker."""
        return MarkerScanner("<|tool_call_end|>")

    def read(self, block: str, tools: Sequence[Tool], is_over: bool) -> Reading:
        """Read a header, which is the call's id, too, and an object."""
        body = inner(block, "<|tool_call_begin|>", "<|tool_call_end|>")
        head, found, text = body.partition("<|tool_call_argument_begin|>")
        match = _KIMI_HEAD.fullmatch(head)
        if not found or not match:
            return Malformed("it does not say which tool it calls")
        number = head.strip() if match.group(2) else None
        return read_arguments(match.group(1), text, is_over, number)

    def grammar(self, tool: Tool, index: int, marker: Marker) -> str:
        """Return a rule for a call of one tool."""
        return (
            f"call_{index}: {marker(self.silent[0])} {marker(self.openings[0])} "
            f"{quoted(f'functions.{tool.name}:0')} {marker('<|tool_call_argument_begin|>')} "
            f"%json {arguments_schema(tool)} {marker('<|tool_call_end|>')} "
            f"{marker(self.silent[1])}\n"
        )


class DeepSeek:
    """<｜tool▁call▁begin｜>f<｜tool▁sep｜>{...}<｜tool▁call▁end｜>; before V3.1 in a code fence."""  # noqa: RUF002

    openings = ("<｜tool▁call▁begin｜>",)  # noqa: RUF001
    silent = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")  # noqa: RUF001
    first: tuple[str, ...] = ()
    closing, separator = "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"  # noqa: RUF001
    markers = frozenset((*openings, *silent, closing, separator))

    def __init__(self, *, fenced: bool = False) -> None:
        """`fenced`: the model was trained on the older form; both are read."""
        self._fenced = fenced

    def scanner(self, opening: str) -> Scanner:
        """Return what finds the closing marker."""
        return MarkerScanner(self.closing)

    def read(self, block: str, tools: Sequence[Tool], is_over: bool) -> Reading:
        """Read a name and an object, or a kind, a name and an object in a code fence."""
        head, found, body = inner(block, self.openings[0], self.closing).partition(self.separator)
        if not found:
            return Malformed("it does not say which tool it calls")
        name, text = head.strip(), body
        if not body.lstrip().startswith("{"):
            name, _, text = body.strip().partition("\n")
            name = name.strip()
            text = text.strip().removesuffix("```").removeprefix("```").removeprefix("json")
        return read_arguments(name, text, is_over)

    def grammar(self, tool: Tool, index: int, marker: Marker) -> str:
        """Return a rule for a call of one tool, as the model was trained to write it."""
        schema, separator = arguments_schema(tool), marker(self.separator)
        middle = f"{quoted(tool.name)} {separator} %json {schema}"
        if self._fenced:
            head = quoted(f"{tool.name}\n```json\n")
            middle = f'"function" {separator} {head} %json {schema} "\\n```"'
        return (
            f"call_{index}: {marker(self.silent[0])} {marker(self.openings[0])} {middle} "
            f"{marker(self.closing)} {marker(self.silent[1])}\n"
        )


class Mistral:
    """[TOOL_CALLS]f[ARGS]{...}; older: [TOOL_CALLS][{"name": ..., "arguments": {...}}]."""

    openings = ("[TOOL_CALLS]",)
    silent: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    markers = frozenset(("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"))

    def __init__(self, *, listed: bool = False) -> None:
        """`listed`: the model was trained on the older form; both are read."""
        self._listed = listed

    def scanner(self, opening: str) -> Scanner:
        """Return what finds the last bracket; [ARGS] has some, too, and is gone over."""
        return BracketScanner()

    def read(self, block: str, tools: Sequence[Tool], is_over: bool) -> Reading:
        """Read a name and an object, or a list of objects."""
        body = block.removeprefix("[TOOL_CALLS]")
        match = _MISTRAL_HEAD.match(body)
        if match:
            text = body[match.end() :]
            if not text.strip() and not is_over:
                return "unfinished"
            return read_arguments(match.group(1), text, is_over, match.group(2) or None)
        if body.lstrip().startswith("["):
            return self._read_list(body, is_over)
        is_head = body.rstrip().endswith("]") and "[CALL_ID]" in body
        return "unfinished" if is_head and not is_over else Malformed("it has no arguments")

    def _read_list(self, body: str, is_over: bool) -> Reading:
        try:
            items = read_json(body)
        except ValueError as error:
            return Malformed(str(error))
        calls: list[Call] = []
        for item in items if isinstance(items, list) else [items]:
            reading = read_named(json.dumps(item), is_over)
            if isinstance(reading, str | Malformed):
                return reading
            calls.extend(reading)
        return calls or Malformed("the list of calls is empty")

    def grammar(self, tool: Tool, index: int, marker: Marker) -> str:
        """Return a rule for a call of one tool, as the model was trained to write it."""
        head = f"call_{index}: {marker('[TOOL_CALLS]')}"
        if self._listed:
            return f'{head} "[" %json {named_schema(tool)} "]"\n'
        name, args = quoted(tool.name), marker("[ARGS]")
        return f"{head} {name} {args} %json {arguments_schema(tool)}\n"


def read_arguments(name: str, text: str, is_over: bool, number: str | None = None) -> Reading:
    """Read a call whose arguments are a JSON text; a text with an open string goes on."""
    try:
        return [Call(checked_name(name), object_text(text), number)]
    except ValueError as error:
        return _failed(error, is_over)


def read_named(text: str, is_over: bool) -> Reading:
    """Read an object with a name and arguments (or parameters)."""
    try:
        value = read_json(text)
        name, arguments, number = _named(value)
        return [Call(name, object_text(arguments), number)]
    except ValueError as error:
        return _failed(error, is_over)


def _named(value: Any) -> tuple[str, Any, str | None]:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = {**value, **value["function"]}
    if not isinstance(value, dict):
        raise ValueError("a call must be a JSON object")
    number = value.get("id")
    arguments = value.get("arguments", value.get("parameters"))
    is_id = isinstance(number, str) and 0 < len(number) <= _MAX_NAME_CHARACTERS
    return checked_name(value.get("name")), arguments, number if is_id else None


def checked_name(name: object) -> str:
    """Return the name of a tool. Raises ValueError for what cannot be one."""
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise ValueError("it does not say which tool it calls")
    if len(name) > _MAX_NAME_CHARACTERS:
        raise ValueError(f"the name of its tool has more than {_MAX_NAME_CHARACTERS} characters")
    return name.strip()


def _failed(error: ValueError, is_over: bool) -> Reading:
    """Tell a text that ends in a string, where a marker was no end, from one that is broken."""
    is_open = isinstance(error, json.JSONDecodeError) and error.msg.startswith("Unterminated")
    return "unfinished" if is_open and not is_over else Malformed(str(error))


def arguments_schema(tool: Tool) -> str:
    """Return the JSON schema of a tool's arguments as text."""
    return schema_text(_named_only(tool))


def _named_only(tool: Tool) -> dict[str, Any]:
    """Return a schema that allows no arguments but its own, unless it says so itself."""
    schema = dict(tool.parameters) or {"type": "object"}
    if schema.get("properties"):
        schema.setdefault("additionalProperties", False)
    return schema


def named_schema(tool: Tool, arguments: str = "arguments") -> str:
    """Return the JSON schema of an object with a tool's name and its arguments, as text."""
    properties = {
        "name": {"const": tool.name},
        arguments: _named_only(tool),
    }
    shared = {key: tool.parameters[key] for key in SHARED if key in tool.parameters}
    return schema_text(
        {
            **shared,
            "type": "object",
            "properties": properties,
            "required": ["name", arguments],
            "additionalProperties": False,
        }
    )
