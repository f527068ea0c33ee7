"""Answers as APIs give them: whole, or as events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from localmoe.chat.events import (
    Piece,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallStart,
)
from localmoe.chat.messages import ToolCall
from localmoe.server.api_error import ApiError
from localmoe.server.events import data
from localmoe.server.job import Ended


@dataclass
class Answer:
    """A whole answer."""

    text: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """Those of the text."""
    ended: Ended | None = None

    @property
    def end(self) -> Ended:
        """How it ended; only for an answer that has."""
        assert self.ended is not None
        return self.ended

    def add(self, piece: Piece) -> None:
        """Take one more piece."""
        event = piece.event
        if isinstance(event, TextDelta):
            self.text += event.text
            self.logprobs.extend(piece.logprobs)
        elif isinstance(event, ReasoningDelta):
            self.reasoning += event.text
        elif isinstance(event, ToolCallStart):
            self.calls.append(ToolCall(event.id, event.name, ""))
        elif isinstance(event, ToolCallDelta):
            call = self.calls[event.index]
            self.calls[event.index] = ToolCall(call.id, call.name, call.arguments + event.arguments)


class EventWriter:
    """Turns an answer into the events of one API."""

    def begin(self, prompt_tokens: int) -> Sequence[str]:
        """Return what comes before the first piece."""
        raise NotImplementedError

    def piece(self, piece: Piece) -> Sequence[str]:
        """Return what a piece becomes."""
        raise NotImplementedError

    def end(self, ended: Ended) -> Sequence[str]:
        """Return what comes last."""
        raise NotImplementedError

    def fail(self, error: ApiError, body: dict[str, Any]) -> Sequence[str]:
        """Return what comes last where the answer failed; `body` is the API's form of the error."""
        return [data(body)]
