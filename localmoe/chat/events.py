"""What an answer consists of while it is being given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple


@dataclass(frozen=True)
class ReasoningDelta:
    """More of the thoughts."""

    text: str


@dataclass(frozen=True)
class TextDelta:
    """More of the answer."""

    text: str


@dataclass(frozen=True)
class ToolCallStart:
    """A call of a tool begins. `index` counts the calls of an answer from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class ToolCallDelta:
    """More of a call's arguments: pieces of one JSON text.

    A call is told of when it is complete and known to be well-formed; so it never has to be taken
    back.
    """

    index: int
    arguments: str


@dataclass(frozen=True)
class Notice:
    """A warning for whoever reads logs, such as of a malformed call that became text."""

    text: str


Event = ReasoningDelta | TextDelta | ToolCallStart | ToolCallDelta | Notice


@dataclass(frozen=True)
class TokenChance:
    """A token and the natural logarithm of its probability, before any sampling filter."""

    token: int
    data: bytes
    """The token's bytes, which may be part of a UTF-8 character."""
    logprob: float


@dataclass(frozen=True)
class TokenLogprob:
    """The token that was chosen, and the likeliest ones at its place, likeliest first."""

    chosen: TokenChance
    top: tuple[TokenChance, ...] = ()


class Piece(NamedTuple):
    """An event, and the tokens that it was made from.

    `logprobs` is empty where they were not asked for. Tokens of markup belong to no event.
    """

    event: Event
    logprobs: tuple[TokenLogprob, ...] = ()


def merged(events: Iterable[Event]) -> list[Event]:
    """Return events with neighbouring deltas of the same kind joined, and empty ones left out."""
    result: list[Event] = []
    for event in events:
        last = result[-1] if result else None
        if isinstance(event, ReasoningDelta | TextDelta):
            if not event.text:
                continue
            if isinstance(last, ReasoningDelta | TextDelta) and type(last) is type(event):
                result[-1] = replace(last, text=last.text + event.text)
                continue
        elif (
            isinstance(event, ToolCallDelta)
            and isinstance(last, ToolCallDelta)
            and last.index == event.index
        ):
            result[-1] = replace(last, arguments=last.arguments + event.arguments)
            continue
        result.append(event)
    return result
