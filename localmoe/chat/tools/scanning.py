"""Where a call may end, found while its text comes in. Each character is looked at once."""

from __future__ import annotations

import re
from typing import Protocol

_STEPS = {
    # Outside of strings, inside of one in double quotes, and in single quotes.
    "": re.compile(r"[\"'\[\]{}()]"),
    '"': re.compile(r'["\\]'),
    "'": re.compile(r"['\\]"),
}


class Scanner(Protocol):
    """Looks for the end of one call."""

    def feed(self, text: str) -> int | None:
        """Return after how many characters of more text the call may end; None: not in it.

        The rest of the text has not been looked at then.
        """
        ...


class MarkerScanner:
    """A call ends with a marker."""

    def __init__(self, closing: str) -> None:
        self._closing = closing
        self._tail = ""

    def feed(self, text: str) -> int | None:
        """Return after how many characters a marker ends."""
        before = len(self._tail)
        joined = self._tail + text
        at = joined.find(self._closing)
        if at >= 0:
            self._tail = ""
            return at + len(self._closing) - before
        keep = len(self._closing) - 1
        self._tail = joined[-keep:] if keep else ""
        return None


class BracketScanner:
    """A call ends where all of its brackets are closed; brackets in strings do not count."""

    def __init__(self, *, single_quotes: bool = False) -> None:
        self._single_quotes = single_quotes
        self._depth, self._quote, self._is_escaped = 0, "", False

    def feed(self, text: str) -> int | None:
        """Return after how many characters the last bracket is closed."""
        at = 0
        if self._is_escaped and text:
            at, self._is_escaped = 1, False
        while match := _STEPS[self._quote].search(text, at):
            at = match.end()
            if match.group() == "\\":
                self._is_escaped = at == len(text)
                at += 1
            elif self._step(match.group()):
                return at
        return None

    def _step(self, mark: str) -> bool:
        """Take in a quote or a bracket; return whether it closes the last one."""
        if self._quote:
            self._quote = ""
        elif mark in "\"'":
            # An apostrophe between calls is no string.
            if mark == '"' or (self._single_quotes and self._depth):
                self._quote = mark
        elif mark in "[{(":
            self._depth += 1
        else:
            self._depth -= 1
            if self._depth <= 0:
                self._depth = 0
                return True
        return False
