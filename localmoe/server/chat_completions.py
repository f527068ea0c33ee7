"""OpenAI's /v1/chat/completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any, Literal

from pydantic import Field

from localmoe.chat.events import (
    Notice,
    Piece,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallStart,
)
from localmoe.chat.request import GenerationRequest, JsonSchema
from localmoe.server.answer import Answer, EventWriter
from localmoe.server.api_error import ApiError
from localmoe.server.body import (
    Body,
    Count,
    Request,
    Seed,
    Share,
    StopTexts,
    Temperature,
    TopK,
    TopLogprobs,
    refuse,
    refuse_set,
)
from localmoe.server.events import data
from localmoe.server.job import Ended
from localmoe.server.openai_parts import (
    ANY_OBJECT,
    MAX_ITEMS,
    ChatMessage,
    Function,
    finish_reason,
    logprobs_of,
    schema_of,
    usage_of,
)
from localmoe.server.service import Service

FINGERPRINT = f"localmoe-{version('localmoe')}"


class ChatTool(Body):
    """A tool of a request."""

    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    """The name of a function."""

    name: str


class ChosenTool(Body):
    """The tool that has to be called."""

    type: Literal["function"]
    function: NamedFunction


class SchemaFormat(Body):
    """A named JSON schema."""

    name: str = "answer"
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(Body):
    """What the answer has to look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None

    def constraint(self) -> JsonSchema | None:
        """Return what the chat holds the answer to. Raises ApiError."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return ANY_OBJECT
        given = self.json_schema.schema_ if self.json_schema else None
        return schema_of(given, "response_format")


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: bool = False


class ChatRequest(Request):
    """A request for an answer to a conversation."""

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_ITEMS)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: TopK | None = None
    min_p: Share | None = None
    seed: Seed | None = None
    stop: str | StopTexts | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    n: Count | None = None
    tools: Annotated[list[ChatTool], Field(max_length=MAX_ITEMS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    """More variables for the model's chat template, such as {"enable_thinking": false}."""
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    functions: list[Any] | None = None
    modalities: list[str] | None = None

    def request(self, service: Service) -> GenerationRequest:
        """Return it as the chat has it. Raises ApiError, SettingsError."""
        self._refuse()
        names: dict[str, str] = {}
        options = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort == "none":
            options = {**service.thinking_off(), **options}
        elif self.reasoning_effort:
            options.setdefault("reasoning_effort", self.reasoning_effort)
        choice = self.tool_choice
        if isinstance(choice, ChosenTool):
            choice = choice.function.name  # type: ignore[assignment]
        return GenerationRequest(
            tuple(message.message(names) for message in self.messages),
            tools=tuple(tool.function.tool() for tool in self.tools or ()),
            tool_choice=str(choice or "auto"),
            sampling=service.sampling(
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                min_p=self.min_p,
                seed=self.seed,
            ),
            max_tokens=self.max_completion_tokens or self.max_tokens or service.options.max_tokens,
            stop=stop_texts(self.stop),
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            response_format=self.response_format.constraint() if self.response_format else None,
            template_options=options,
        )

    def _refuse(self) -> None:
        """Raise ApiError for what would change the answer and is not done."""
        refuse_set(
            {
                "frequency_penalty": self.frequency_penalty,
                "presence_penalty": self.presence_penalty,
                "logit_bias": self.logit_bias,
                "functions": self.functions,
            }
        )
        if self.n not in (None, 1):
            raise refuse("n", "must be 1: ask again for another answer")
        if self.modalities not in (None, ["text"]):
            raise refuse("modalities", 'must be ["text"]')
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")

    @property
    def most_calls(self) -> int:
        """After how many calls of tools the answer ends; 0: there is no bound."""
        return 1 if self.parallel_tool_calls is False else 0


def stop_texts(stop: str | list[str] | None) -> tuple[str, ...]:
    """Return the texts that end an answer. Raises ApiError for an empty one."""
    if stop == "":
        raise ApiError(400, "a stop text must not be empty", param="stop")
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def chat_completion(answer: Answer, body: ChatRequest, service: Service) -> dict[str, Any]:
    """Return a whole answer."""
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in answer.calls
    ]
    message: dict[str, Any] = {
        "role": "assistant",
        "content": answer.text if answer.text or not calls else None,
        "refusal": None,
    }
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if calls:
        message["tool_calls"] = calls
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": finish_reason(answer.end.finish),
        "logprobs": logprobs_of(answer.logprobs) if body.logprobs else None,
    }
    head = _head(new_id("chatcmpl"), "chat.completion", service)
    return {**head, "choices": [choice], "usage": usage_of(answer.end.usage)}


class ChatWriter(EventWriter):
    """An answer as chunks."""

    def __init__(self, body: ChatRequest, service: Service) -> None:
        self._head = _head(new_id("chatcmpl"), "chat.completion.chunk", service)
        self._wants_usage = bool(body.stream_options and body.stream_options.include_usage)
        self._wants_logprobs = bool(body.logprobs)

    def begin(self, prompt_tokens: int) -> Sequence[str]:
        """Say who speaks."""
        return [self._chunk({"role": "assistant", "content": ""})]

    def piece(self, piece: Piece) -> Sequence[str]:
        """Say more."""
        event = piece.event
        if isinstance(event, Notice):
            return []
        if isinstance(event, TextDelta):
            logprobs = logprobs_of(piece.logprobs) if self._wants_logprobs else None
            return [self._chunk({"content": event.text}, logprobs=logprobs)]
        if isinstance(event, ReasoningDelta):
            return [self._chunk({"reasoning_content": event.text})]
        return [self._chunk({"tool_calls": [_call_delta(event)]})]

    def end(self, ended: Ended) -> Sequence[str]:
        """Say why it ended and, where that was asked for, what it cost."""
        events = [self._chunk({}, finish=finish_reason(ended.finish))]
        if self._wants_usage:
            events.append(data({**self._head, "choices": [], "usage": usage_of(ended.usage)}))
        return [*events, "data: [DONE]\n\n"]

    def _chunk(
        self, delta: dict[str, Any], *, finish: str | None = None, logprobs: Any = None
    ) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
        usage = {"usage": None} if self._wants_usage else {}
        return data({**self._head, "choices": [choice], **usage})


def _call_delta(event: ToolCallStart | ToolCallDelta) -> dict[str, Any]:
    if isinstance(event, ToolCallDelta):
        return {"index": event.index, "function": {"arguments": event.arguments}}
    function = {"name": event.name, "arguments": ""}
    return {"index": event.index, "id": event.id, "type": "function", "function": function}


def new_id(kind: str) -> str:
    """Return an id such as chatcmpl-3f0c..."""
    return f"{kind}-{secrets.token_hex(12)}"


def _head(name: str, kind: str, service: Service) -> dict[str, Any]:
    return {
        "id": name,
        "object": kind,
        "created": int(time.time()),
        "model": service.model,
        "system_fingerprint": FINGERPRINT,
    }
