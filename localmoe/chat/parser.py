"""What turns the text of an answer into events."""

from __future__ import annotations

from typing import Protocol

from localmoe.chat.events import Event, TextDelta


class AnswerParser(Protocol):
    """Reads one answer, in pieces of any size; the pieces make no difference to the events.

    Never raises, whatever the text is; keeps a bounded amount of it.
    """

    @property
    def markers(self) -> frozenset[str]:
        """Control tokens that it wants to see as text; all others are left out."""
        ...

    @property
    def in_reasoning(self) -> bool:
        """Whether the text that comes next belongs to the thoughts."""
        ...

    @property
    def constrainable(self) -> bool:
        """Whether a grammar for the answer counts for what comes next."""
        ...

    @property
    def opening(self) -> str | None:
        """The tag with which thoughts may begin here; None where they cannot."""
        ...

    def feed(self, text: str) -> list[Event]:
        """Return the events that are certain after more text."""
        ...

    def finish(self) -> list[Event]:
        """Return the rest: the answer is over."""
        ...


class PlainParser:
    """All is text."""

    markers: frozenset[str] = frozenset()
    in_reasoning = False
    constrainable = True
    opening: str | None = None

    def feed(self, text: str) -> list[Event]:
        """Return the text."""
        return [TextDelta(text)] if text else []

    def finish(self) -> list[Event]:
        """Return nothing: nothing was kept."""
        return []
