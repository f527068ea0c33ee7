"""What a syntax for calls of tools has to know; the parser does the rest."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from localmoe.chat.messages import Tool
from localmoe.chat.tools.scanning import Scanner


@dataclass(frozen=True)
class Call:
    """A well-formed call."""

    name: str
    arguments: str
    """JSON text, an object."""
    id: str | None = None
    """Where the model gave it one."""


@dataclass(frozen=True)
class Malformed:
    """A text that begins like a call and is none; it will be shown as it is."""

    reason: str


Reading = Sequence[Call] | Malformed | Literal["unfinished", "text"]
"""What a block is: calls, a failed one, one that goes on, or something else altogether."""

Marker = Callable[[str], str]
"""From a text to a term of a Lark grammar: a control token, if that is what it is."""


class CallFormat(Protocol):
    """One syntax. Nothing here raises, whatever the model says."""

    @property
    def openings(self) -> tuple[str, ...]:
        """Markers that begin a block, of one call or more."""
        ...

    @property
    def silent(self) -> tuple[str, ...]:
        """Markers around blocks that mean nothing to us."""
        ...

    @property
    def first(self) -> tuple[str, ...]:
        """Markers that begin a block only where nothing was said before it."""
        ...

    @property
    def markers(self) -> frozenset[str]:
        """Markers that may be control tokens, those inside of blocks included."""
        ...

    def scanner(self, opening: str) -> Scanner:
        """Return what finds the end of a block that began with an opening."""
        ...

    def read(self, block: str, tools: Sequence[Tool], is_over: bool) -> Reading:
        """Read a block, its opening included. `is_over`: the answer ended without its closing."""
        ...

    def grammar(self, tool: Tool, index: int, marker: Marker) -> str:
        """Return Lark rules for a call of one tool; the first is named call_<index>."""
        ...


def quoted(text: str) -> str:
    """Return a text as a string of a Lark grammar."""
    return json.dumps(text, ensure_ascii=False)


def inner(block: str, opening: str, closing: str) -> str:
    """Return what stands between the markers of a block; the closing one may be missing."""
    return block.removeprefix(opening).removesuffix(closing)
