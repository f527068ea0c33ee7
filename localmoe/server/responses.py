"""OpenAI's /v1/responses. Nothing is stored: each request brings its whole conversation."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from pydantic import Field

from localmoe.chat.messages import Message, Role, Tool, ToolCall
from localmoe.chat.request import GenerationRequest, JsonSchema
from localmoe.chat.usage import Usage
from localmoe.server.answer import Answer
from localmoe.server.body import (
    Body,
    Count,
    Request,
    Share,
    Temperature,
    TopK,
    TopLogprobs,
    refuse,
    refuse_set,
)
from localmoe.server.chat_completions import new_id
from localmoe.server.openai_parts import (
    ANY_OBJECT,
    MAX_ITEMS,
    Content,
    Function,
    schema_of,
    text_of,
)
from localmoe.server.service import Service

_LOGPROBS = "message.output_text.logprobs"


class Item(Body):
    """One part of the conversation: a message, a call, its result, or thoughts."""

    type: str = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Content = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: Content = None


class ResponseTool(Function):
    """A tool of a request."""

    type: str

    def tool(self) -> Tool:
        """Return it as the chat has it. Raises ApiError for tools that OpenAI's servers run."""
        if self.type != "function":
            raise refuse("tools", f"has one of type {self.type[:40]!r}, which is not known here")
        return super().tool()


class ChosenFunction(Body):
    """The tool that has to be called."""

    type: Literal["function"]
    name: str


class TextFormat(Body):
    """What the answer has to look like."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    strict: bool | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None

    def constraint(self) -> JsonSchema | None:
        """Return what the chat holds the answer to. Raises ApiError."""
        if self.type == "text":
            return None
        return ANY_OBJECT if self.type == "json_object" else schema_of(self.schema_, "text.format")


class TextOptions(Body):
    """Options of the answer's text."""

    format: TextFormat | None = None


class Reasoning(Body):
    """How much the model is to think."""

    effort: str | None = None


class ResponsesRequest(Request):
    """A request for an answer."""

    model: str
    input: str | Annotated[list[Item], Field(min_length=1, max_length=MAX_ITEMS)]
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: TopK | None = None
    top_logprobs: TopLogprobs | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=MAX_ITEMS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenFunction | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    metadata: dict[str, str] | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    include: list[str] | None = None

    def request(self, service: Service) -> GenerationRequest:
        """Return it as the chat has it. Raises ApiError, SettingsError."""
        names = ("background", "previous_response_id", "conversation", "prompt", "top_logprobs")
        refuse_set({name: getattr(self, name) for name in names})
        if _LOGPROBS in (self.include or ()):
            raise refuse("include", f"cannot have {_LOGPROBS}: /v1/chat/completions has logprobs")
        effort = self.reasoning.effort if self.reasoning else None
        options: dict[str, Any] = {}
        if effort == "none":
            options = service.thinking_off()
        elif effort:
            options = {"reasoning_effort": effort}
        choice = self.tool_choice
        text = self.text.format if self.text else None
        return GenerationRequest(
            self._conversation(),
            tools=tuple(tool.tool() for tool in self.tools or ()),
            tool_choice=choice.name if isinstance(choice, ChosenFunction) else choice or "auto",
            sampling=service.sampling(
                temperature=self.temperature, top_p=self.top_p, top_k=self.top_k
            ),
            max_tokens=self.max_output_tokens or service.options.max_tokens,
            response_format=text.constraint() if text else None,
            template_options=options,
        )

    @property
    def most_calls(self) -> int:
        """After how many calls of tools the answer ends; 0: there is no bound."""
        return 1 if self.parallel_tool_calls is False else 0

    def _conversation(self) -> tuple[Message, ...]:
        """Return the messages. What the assistant thought, said and called at a time is one."""
        messages = [Message("system", self.instructions)] if self.instructions else []
        if isinstance(self.input, str):
            return (*messages, Message("user", self.input))
        turn = _Turn()
        for item in self.input:
            if item.type == "function_call_output":
                messages += turn.close()
                name = turn.names.get(item.call_id or "")
                result = text_of(item.output)
                messages.append(Message("tool", result, tool_call_id=item.call_id or "", name=name))
            elif item.type != "message" or item.role == "assistant":
                turn.add(item)
            else:
                messages += turn.close()
                role: Role = item.role or "user"
                messages.append(Message(role, text_of(item.content)))
        return (*messages, *turn.close())


class _Turn:
    """Joins what the assistant did between two messages of others."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[ToolCall] = []

    def add(self, item: Item) -> None:
        if item.type == "message":
            self._texts.append(text_of(item.content))
        elif item.type == "reasoning":
            self._thoughts.append(text_of(item.content))
        elif item.type == "function_call":
            call = ToolCall(item.call_id or "", item.name or "", item.arguments or "")
            self._calls.append(call)
            self.names[call.id] = call.name
        else:
            raise refuse("input", f"has an item of type {item.type[:40]!r}: it is not read")

    def close(self) -> list[Message]:
        texts, thoughts, calls = self._texts, self._thoughts, self._calls
        self._texts, self._thoughts, self._calls = [], [], []
        if not (texts or thoughts or calls):
            return []
        reasoning = "\n".join(thoughts) or None
        return [Message("assistant", "\n".join(texts), reasoning, tuple(calls))]


def response_head(body: ResponsesRequest, service: Service) -> dict[str, Any]:
    """Return a response that has only begun."""
    choice: Any = body.tool_choice or "auto"
    form = (body.text and body.text.format) or TextFormat()
    tools = [
        {
            "type": "function",
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters,
            "strict": tool.strict,
        }
        for tool in body.tools or ()
    ]
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "model": service.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "store": False,
        "temperature": body.temperature,
        "text": {"format": form.model_dump(by_alias=True, exclude_none=True)},
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
        "tools": tools,
        "top_p": body.top_p,
        "truncation": "disabled",
        "usage": None,
        "metadata": body.metadata or {},
    }


def reasoning_item(text: str, *, done: bool = True, name: str | None = None) -> dict[str, Any]:
    """Return thoughts as a part of the output."""
    content = [{"type": "reasoning_text", "text": text}] if done else []
    return {
        "id": name or new_id("rs"),
        "type": "reasoning",
        "summary": [],
        "content": content,
        "status": "completed" if done else "in_progress",
    }


def text_part(text: str) -> dict[str, Any]:
    """Return text as a part of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def message_item(text: str, *, done: bool = True, name: str | None = None) -> dict[str, Any]:
    """Return a message as a part of the output."""
    return {
        "id": name or new_id("msg"),
        "type": "message",
        "role": "assistant",
        "status": "completed" if done else "in_progress",
        "content": [text_part(text)] if done else [],
    }


def call_item(call: ToolCall, *, done: bool = True, name: str | None = None) -> dict[str, Any]:
    """Return a call as a part of the output."""
    return {
        "id": name or new_id("fc"),
        "type": "function_call",
        "status": "completed" if done else "in_progress",
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
    }


def finished(head: dict[str, Any], answer: Answer, output: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a response that has ended."""
    end = answer.end
    cut = end.finish in ("length", "context")
    return {
        **head,
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": output,
        "usage": usage_of(end.usage),
    }


def response(answer: Answer, body: ResponsesRequest, service: Service) -> dict[str, Any]:
    """Return a whole answer."""
    output = [reasoning_item(answer.reasoning)] if answer.reasoning else []
    if answer.text or not answer.calls:
        output.append(message_item(answer.text))
    output.extend(call_item(call) for call in answer.calls)
    return finished(response_head(body, service), answer, output)


def usage_of(usage: Usage) -> dict[str, Any]:
    """Return what an answer cost."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.answer_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.answer_tokens,
    }
