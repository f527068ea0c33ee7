"""Llama's calls: a Python list of them, or JSON objects; the whole answer, not a part of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from localmoe.chat.messages import Tool
from localmoe.chat.tools.arguments import object_text, read_json
from localmoe.chat.tools.format import Call, Malformed, Marker, Reading
from localmoe.chat.tools.json_calls import named_schema, read_named
from localmoe.chat.tools.pythonic import read_calls
from localmoe.chat.tools.scanning import BracketScanner, Scanner

_CALLED = re.compile(r"\[\s*([\w.\-]+)\s*\(")
_NAMED = re.compile(r"\{\s*\"(?:name|type|function)\"")


class Llama:
    """[f(a=1)] or {"name": "f", "parameters": {"a": 1}}; only of tools that were offered.

    Other lists and objects are what the user asked for.
    """

    openings: tuple[str, ...] = ()
    silent = ("<|python_start|>", "<|python_end|>", "<|python_tag|>")
    first = ("[", "{")
    markers = frozenset(silent)

    def scanner(self, opening: str) -> Scanner:
        """Return what finds the last bracket."""
        return BracketScanner(single_quotes=opening == "[")

    def read(self, block: str, tools: Sequence[Tool], is_over: bool) -> Reading:
        """Read calls; "text" for what is none."""
        names = {tool.name for tool in tools}
        if block.startswith("{"):
            reading = read_named(block, True)
            if isinstance(reading, Malformed) and _NAMED.match(block) and _names_one(block, names):
                return reading
            is_call = not isinstance(reading, str | Malformed) and reading[0].name in names
            return reading if is_call else "text"
        try:
            calls = [Call(name, object_text(values)) for name, values in self._list(block)]
        except ValueError as error:
            head = _CALLED.match(block)
            is_call = head is not None and head.group(1) in names
            return Malformed(str(error)) if is_call else "text"
        return calls if calls and all(call.name in names for call in calls) else "text"

    def _list(self, block: str) -> list[tuple[str, Any]]:
        """Return the names and arguments of a list of calls, which may be JSON. ValueError."""
        try:
            return list(read_calls(block))
        except ValueError:
            items = read_json(block)
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise ValueError("a list of calls was expected")
        return [
            (str(item.get("name")), item.get("parameters", item.get("arguments"))) for item in items
        ]

    def grammar(self, tool: Tool, index: int, marker: Marker) -> str:
        """Return a rule for a call of one tool, as JSON."""
        return f"call_{index}: %json {named_schema(tool, 'parameters')}\n"


def _names_one(block: str, names: set[str]) -> bool:
    return any(f'"{name}"' in block for name in names)
