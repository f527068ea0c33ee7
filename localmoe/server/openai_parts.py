"""What OpenAI's APIs share: messages, tools, usage and probabilities in their form."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from localmoe.chat.events import TokenChance, TokenLogprob
from localmoe.chat.generation import Finish
from localmoe.chat.messages import Message, Tool, ToolCall
from localmoe.chat.request import JsonSchema
from localmoe.chat.usage import Usage
from localmoe.server.api_error import ApiError
from localmoe.server.body import Body, refuse

_LEAST_LOGPROB = -9999.0
"""Stands for less than JSON can say."""
ANY_OBJECT = JsonSchema({"type": "object"})
MAX_ITEMS = 4096
"""Messages, parts of one, or tools in a request."""


class TextPart(Body):
    """A part of a message's content. Only text can be read."""

    type: str
    text: str | None = None
    refusal: str | None = None


Content = str | Annotated[list[TextPart], Field(max_length=MAX_ITEMS)] | None


class CalledFunction(Body):
    """The function of an earlier call."""

    name: str
    arguments: str = ""


class EarlierCall(Body):
    """A call that the assistant made before."""

    id: str = ""
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    """Another name of `reasoning_content`, which some clients use."""
    tool_calls: Annotated[list[EarlierCall], Field(max_length=MAX_ITEMS)] | None = None
    tool_call_id: str | None = None
    name: str | None = None

    def message(self, names: dict[str, str]) -> Message:
        """Return it as the chat has it; `names` has the tool of each earlier call by its id."""
        calls = tuple(
            ToolCall(call.id, call.function.name, call.function.arguments)
            for call in self.tool_calls or ()
        )
        names.update((call.id, call.name) for call in calls)
        return Message(
            self.role,
            text_of(self.content),
            self.reasoning_content or self.reasoning,
            calls,
            self.tool_call_id,
            self.name or (names.get(self.tool_call_id or "") if self.role == "tool" else None),
        )


class Function(Body):
    """A function that the model may call."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.:-]{1,128}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def tool(self) -> Tool:
        """Return it as the chat has it."""
        return Tool(self.name, self.description or "", self.parameters or {})


def text_of(content: Content) -> str:
    """Return a message's text. Raises ApiError for parts that are no text."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in content:
        if part.text is None and part.refusal is None:
            raise refuse("content", f"has a part of type {part.type[:40]!r}: only text is read")
        texts.append(part.text if part.text is not None else part.refusal or "")
    return "\n".join(texts)


def schema_of(schema: dict[str, Any] | None, name: str) -> JsonSchema:
    """Return the schema of a response format. Raises ApiError."""
    if schema is None:
        raise ApiError(400, f"{name} needs a schema", param=name)
    return JsonSchema(schema)


def finish_reason(finish: Finish) -> str:
    """Return why an answer ended, in OpenAI's words."""
    if finish in ("length", "context"):
        return "length"
    return "tool_calls" if finish == "tool_calls" else "stop"


def usage_of(usage: Usage) -> dict[str, Any]:
    """Return what an answer cost."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.answer_tokens,
        "total_tokens": usage.prompt_tokens + usage.answer_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def logprob_of(chance: TokenChance) -> float:
    """Return a probability that JSON can say."""
    return max(chance.logprob, _LEAST_LOGPROB)


def token_text(chance: TokenChance) -> str:
    """Return a token as text."""
    return chance.data.decode(errors="replace")


def chance_of(chance: TokenChance) -> dict[str, Any]:
    """Return one token and its probability."""
    return {
        "token": token_text(chance),
        "logprob": logprob_of(chance),
        "bytes": list(chance.data),
    }


def logprobs_of(logprobs: list[TokenLogprob] | tuple[TokenLogprob, ...]) -> dict[str, Any]:
    """Return the probabilities of a text's tokens."""
    content = [
        {**chance_of(each.chosen), "top_logprobs": [chance_of(top) for top in each.top]}
        for each in logprobs
    ]
    return {"content": content, "refusal": None}
