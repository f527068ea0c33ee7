"""Thoughts between tags, told from the answer while the text comes in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from localmoe.chat.events import Event, ReasoningDelta
from localmoe.chat.parser import AnswerParser
from localmoe.chat.stopping import earliest, held_length, trimmed_length

_MAX_SPACE = 256
"""As much space may come before the opening tag."""

_State = Literal["before", "begun", "inside", "behind", "outside"]


@dataclass(frozen=True)
class ThinkTags:
    """What stands around thoughts."""

    opening: str
    closing: str


THINK = ThinkTags("<think>", "</think>")
BRACKETS = ThinkTags("[THINK]", "[/THINK]")


class ThinkingParser:
    """Thoughts first, then what another parser reads; see `AnswerParser`.

    Thoughts begin with their tag at the very beginning, or have begun in the prompt. They end with
    their closing tag, or where a call of a tool begins: some models forget the tag. Space around
    the thoughts is dropped.
    """

    def __init__(
        self, tags: ThinkTags, rest: AnswerParser, *, begun: bool, calls: Sequence[str] = ()
    ) -> None:
        """`begun`: the opening tag stands at the end of the prompt. `calls`: what begins one."""
        self._tags, self._rest = tags, rest
        self._state: _State = "begun" if begun else "before"
        self._ends = (tags.closing, *calls)
        self._text = ""
        """Not yet told of: space, and what may be the beginning of a tag."""

    @property
    def markers(self) -> frozenset[str]:
        """Control tokens that it wants to see as text."""
        return self._rest.markers | {self._tags.opening, self._tags.closing}

    @property
    def in_reasoning(self) -> bool:
        """Whether the thoughts go on."""
        return self._state in ("begun", "inside")

    @property
    def constrainable(self) -> bool:
        """Whether what comes next is part of the answer."""
        return not self.in_reasoning

    @property
    def opening(self) -> str | None:
        """The tag that may come now."""
        return self._tags.opening if self._state == "before" and not self._text else None

    def feed(self, text: str) -> list[Event]:
        """Return the events that are certain after more text."""
        events: list[Event] = []
        text, self._text = self._text + text, ""
        while text:
            if self._state in ("before", "begun"):
                text = self._begin(text)
            elif self._state == "inside":
                text = self._think(text, events)
            elif self._state == "behind":
                text = text.lstrip("\r\n")
                self._state = "outside" if text else "behind"
            else:
                events.extend(self._rest.feed(text))
                text = ""
        return events

    def finish(self) -> list[Event]:
        """Return the rest: the answer is over."""
        held, self._text = self._text, ""
        if self.in_reasoning:
            held = held.rstrip()
            return [ReasoningDelta(held), *self._rest.finish()] if held else self._rest.finish()
        return [*self._rest.feed(held), *self._rest.finish()]

    def _begin(self, text: str) -> str:
        """Look for the opening tag; return what is left to be read."""
        tag, stripped = self._tags.opening, text.lstrip()
        is_begun = self._state == "begun"
        if not is_begun and len(text) - len(stripped) > _MAX_SPACE:
            self._state = "outside"
        elif stripped.startswith(tag):
            self._state = "begun"
            return stripped[len(tag) :]
        elif tag.startswith(stripped):
            self._text = stripped if is_begun else text
            return ""
        else:
            self._state = "inside" if is_begun else "outside"
        return stripped if is_begun else text

    def _think(self, text: str, events: list[Event]) -> str:
        """Tell of thoughts; return what follows them."""
        found = earliest(text, self._ends)
        if found is None:
            held = held_length(text, self._ends)
            keep = trimmed_length(text[: len(text) - held])
            self._text = text[keep:]
            self._tell(text[:keep], events)
            return ""
        at, end = found
        self._tell(text[: trimmed_length(text[:at])], events)
        if end == self._tags.closing:
            self._state = "behind"
            return text[at + len(end) :]
        self._state = "outside"
        return text[at:]

    def _tell(self, text: str, events: list[Event]) -> None:
        if text:
            events.append(ReasoningDelta(text))
