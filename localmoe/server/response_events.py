"""An answer as the events of OpenAI's Responses: items that begin, grow and end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from localmoe.chat.events import (
    Notice,
    Piece,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallStart,
)
from localmoe.chat.messages import ToolCall
from localmoe.server.answer import Answer, EventWriter
from localmoe.server.api_error import ApiError
from localmoe.server.chat_completions import new_id
from localmoe.server.events import data
from localmoe.server.job import Ended
from localmoe.server.responses import (
    ResponsesRequest,
    call_item,
    finished,
    message_item,
    reasoning_item,
    response_head,
    text_part,
)
from localmoe.server.service import Service


class ResponseWriter(EventWriter):
    """Writes one answer."""

    def __init__(self, body: ResponsesRequest, service: Service) -> None:
        self._response = response_head(body, service)
        self._output: list[dict[str, Any]] = []
        self._kind: type | None = None
        """Of the item that grows: the type of its deltas."""
        self._name = ""
        self._text = ""
        self._call = ToolCall("", "", "")
        self._n_events = 0

    def begin(self, prompt_tokens: int) -> Sequence[str]:
        """Say that it begins."""
        return [
            self._event("response.created", response=self._response),
            self._event("response.in_progress", response=self._response),
        ]

    def piece(self, piece: Piece) -> Sequence[str]:
        """Say more."""
        event = piece.event
        if isinstance(event, Notice):
            return []
        if isinstance(event, ToolCallStart):
            closed = self._close()
            self._kind, self._name, self._text = ToolCallDelta, new_id("fc"), ""
            self._call = ToolCall(event.id, event.name, "")
            return [*closed, self._added(call_item(self._call, done=False, name=self._name))]
        if isinstance(event, ToolCallDelta):
            self._text += event.arguments
            return [self._grow("response.function_call_arguments.delta", delta=event.arguments)]
        opened = self._switch(type(event))
        self._text += event.text
        if isinstance(event, ReasoningDelta):
            kind = "response.reasoning_text.delta"
            return [*opened, self._grow(kind, content_index=0, delta=event.text)]
        kind = "response.output_text.delta"
        return [*opened, self._grow(kind, content_index=0, delta=event.text, logprobs=[])]

    def end(self, ended: Ended) -> Sequence[str]:
        """Say that it ended, and all of it once more."""
        closed = self._close()
        if not self._output:
            closed = [*self._switch(TextDelta), *self._close()]
        done = finished(self._response, Answer(ended=ended), self._output)
        return [*closed, self._event(f"response.{done['status']}", response=done)]

    def fail(self, error: ApiError, body: dict[str, Any]) -> Sequence[str]:
        """Say what went wrong."""
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        failure = {"code": code, "message": error.message}
        failed = {**self._response, "status": "failed", "error": failure}
        return [self._event("response.failed", response=failed)]

    def _switch(self, kind: type) -> list[str]:
        """Begin an item of thoughts or of text, unless one grows already."""
        if self._kind is kind:
            return []
        closed = self._close()
        self._kind, self._text = kind, ""
        if kind is ReasoningDelta:
            self._name = new_id("rs")
            item, part = reasoning_item("", done=False, name=self._name), _thought("")
        else:
            self._name = new_id("msg")
            item, part = message_item("", done=False, name=self._name), text_part("")
        added = self._added(item)  # events are numbered as they are made
        return [
            *closed,
            added,
            self._grow("response.content_part.added", content_index=0, part=part),
        ]

    def _close(self) -> list[str]:
        """End the item that grows."""
        closers: dict[type, Callable[[], tuple[list[str], dict[str, Any]]]] = {
            TextDelta: self._close_text,
            ReasoningDelta: self._close_thoughts,
            ToolCallDelta: self._close_call,
        }
        if self._kind is None:
            return []
        events, item = closers[self._kind]()
        index = len(self._output)
        events.append(self._event("response.output_item.done", output_index=index, item=item))
        self._output.append(item)
        self._kind = None
        return events

    def _close_text(self) -> tuple[list[str], dict[str, Any]]:
        part, text = text_part(self._text), self._text
        done = [
            self._grow("response.output_text.done", content_index=0, text=text, logprobs=[]),
            self._grow("response.content_part.done", content_index=0, part=part),
        ]
        return done, message_item(self._text, name=self._name)

    def _close_thoughts(self) -> tuple[list[str], dict[str, Any]]:
        part, text = _thought(self._text), self._text
        done = [
            self._grow("response.reasoning_text.done", content_index=0, text=text),
            self._grow("response.content_part.done", content_index=0, part=part),
        ]
        return done, reasoning_item(self._text, name=self._name)

    def _close_call(self) -> tuple[list[str], dict[str, Any]]:
        call = ToolCall(self._call.id, self._call.name, self._text)
        kind = "response.function_call_arguments.done"
        done = [self._grow(kind, name=call.name, arguments=call.arguments)]
        return done, call_item(call, name=self._name)

    def _added(self, item: dict[str, Any]) -> str:
        return self._event("response.output_item.added", output_index=len(self._output), item=item)

    def _grow(self, kind: str, **values: Any) -> str:
        return self._event(kind, item_id=self._name, output_index=len(self._output), **values)

    def _event(self, kind: str, **values: Any) -> str:
        number, self._n_events = self._n_events, self._n_events + 1
        return data({"type": kind, "sequence_number": number, **values}, kind)


def _thought(text: str) -> dict[str, Any]:
    return {"type": "reasoning_text", "text": text}
