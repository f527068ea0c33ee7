"""An answer as the events of Anthropic's streams: blocks that begin, grow and end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from localmoe.chat.events import (
    Notice,
    Piece,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallStart,
)
from localmoe.server.answer import EventWriter
from localmoe.server.api_error import ApiError
from localmoe.server.events import data
from localmoe.server.job import Ended
from localmoe.server.messages import message_head, stop_reason, usage_of
from localmoe.server.service import Service


class MessageWriter(EventWriter):
    """Writes one answer."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._open: str | None = None
        """The type of the block that grows."""
        self._index = -1

    def begin(self, prompt_tokens: int) -> Sequence[str]:
        """Say who speaks."""
        usage = {"input_tokens": prompt_tokens, "output_tokens": 0}
        message = {
            **message_head(self._service),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        return [_event("message_start", message=message)]

    def piece(self, piece: Piece) -> Sequence[str]:
        """Say more."""
        event = piece.event
        if isinstance(event, Notice):
            return []
        if isinstance(event, ToolCallStart):
            start = {"type": "tool_use", "id": event.id, "name": event.name, "input": {}}
            return [*self._close(), self._begin(start)]
        if isinstance(event, ToolCallDelta):
            return [self._delta({"type": "input_json_delta", "partial_json": event.arguments})]
        if isinstance(event, TextDelta):
            opened = self._switch({"type": "text", "text": ""})
            return [*opened, self._delta({"type": "text_delta", "text": event.text})]
        assert isinstance(event, ReasoningDelta)
        opened = self._switch({"type": "thinking", "thinking": "", "signature": ""})
        return [*opened, self._delta({"type": "thinking_delta", "thinking": event.text})]

    def end(self, ended: Ended) -> Sequence[str]:
        """Say why it ended and what it cost."""
        delta = {
            "stop_reason": stop_reason(ended.finish, ended.stop_text),
            "stop_sequence": ended.stop_text,
        }
        return [
            *self._close(),
            _event("message_delta", delta=delta, usage=usage_of(ended.usage)),
            _event("message_stop"),
        ]

    def fail(self, error: ApiError, body: dict[str, Any]) -> Sequence[str]:
        """Say what went wrong."""
        return [data(body, "error")]

    def _switch(self, block: dict[str, Any]) -> list[str]:
        """Begin a block, unless one of its type grows already."""
        if self._open == block["type"]:
            return []
        return [*self._close(), self._begin(block)]

    def _begin(self, block: dict[str, Any]) -> str:
        self._open = block["type"]
        self._index += 1
        return _event("content_block_start", index=self._index, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> str:
        return _event("content_block_delta", index=self._index, delta=delta)

    def _close(self) -> list[str]:
        if self._open is None:
            return []
        self._open = None
        return [_event("content_block_stop", index=self._index)]


def _event(kind: str, **values: Any) -> str:
    return data({"type": kind, **values}, kind)
