"""Calls that look like Python: [f(a=1, b="x"), g()]. Literals only; nothing is ever evaluated."""

from __future__ import annotations

import ast
import re
from typing import Any

from localmoe.chat.tools.arguments import read_json

_MAX_DEPTH = 32
_NAME = re.compile(r"[A-Za-z_][\w.\-]*")
_NUMBER = re.compile(r"[+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_STRING = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'", re.DOTALL)
_WORDS = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}


def read_calls(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Return names and arguments. Raises ValueError for anything but a list of calls, or one."""
    reader = _Reader(text)
    calls: list[tuple[str, dict[str, Any]]] = []
    closing = "]" if reader.take("[") else ""
    while not calls or reader.take(","):
        calls.append(reader.call())
    if closing and not reader.take(closing):
        raise ValueError("a closing bracket was expected")
    reader.check_over()
    return calls


class _Reader:
    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def take(self, mark: str) -> bool:
        self._skip_space()
        found = self._text.startswith(mark, self._at)
        self._at += len(mark) if found else 0
        return found

    def check_over(self) -> None:
        self._skip_space()
        if self._at < len(self._text):
            raise ValueError("something follows the calls")

    def call(self) -> tuple[str, dict[str, Any]]:
        name = self._match(_NAME)
        if name is None or not self.take("("):
            raise ValueError("a call was expected")
        arguments: dict[str, Any] = {}
        while not self.take(")"):
            if arguments and not self.take(","):
                raise ValueError("a comma was expected")
            if arguments and self.take(")"):
                break
            key = self._match(_NAME)
            if key is None or not self.take("="):
                raise ValueError("every argument needs its name")
            arguments[key] = self._value(0)
        return name, arguments

    def _value(self, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        for opening, closing in ("[]", "()"):
            if self.take(opening):
                return self._list(closing, depth)
        if self.take("{"):
            return self._dict(depth)
        text = self._match(_STRING)
        if text is not None:
            return _string(text)
        text = self._match(_NUMBER)
        if text is not None:
            return _number(text)
        word = self._match(_NAME)
        if word not in _WORDS:
            raise ValueError("a value was expected")
        return _WORDS[word]

    def _list(self, closing: str, depth: int) -> list[Any]:
        values: list[Any] = []
        while not self.take(closing):
            if values and not self.take(","):
                raise ValueError("a comma was expected")
            if values and self.take(closing):
                break
            values.append(self._value(depth + 1))
        return values

    def _dict(self, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not self.take("}"):
            if values and not self.take(","):
                raise ValueError("a comma was expected")
            if values and self.take("}"):
                break
            key = self._value(depth + 1)
            if not isinstance(key, str) or not self.take(":"):
                raise ValueError("a key was expected")
            values[key] = self._value(depth + 1)
        return values

    def _match(self, pattern: re.Pattern[str]) -> str | None:
        self._skip_space()
        match = pattern.match(self._text, self._at)
        if match is None:
            return None
        self._at = match.end()
        return match.group()

    def _skip_space(self) -> None:
        while self._at < len(self._text) and self._text[self._at].isspace():
            self._at += 1


def _string(text: str) -> str:
    if text[0] == '"':
        try:
            value = read_json(text)
        except ValueError:
            value = None
        if isinstance(value, str):
            return value
    # Newlines may stand in these strings; unknown escapes would be a warning of Python's.
    escaped = re.sub(r"\\(?![\\'\"nrtbfvaxuUN0-7\n])", r"\\\\", text)
    try:
        return str(ast.literal_eval(escaped.replace("\n", "\\n").replace("\r", "\\r")))
    except (SyntaxError, ValueError) as error:
        raise ValueError("a string cannot be read") from error


def _number(text: str) -> int | float:
    plain = text.replace("_", "")
    if plain.lstrip("+-").isdigit():
        return int(plain)
    value = float(plain)
    if value - value != 0:
        raise ValueError("a number is too large")
    return value
