"""Anthropic's /v1/messages, and the counting of its tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from localmoe.chat.generation import Finish
from localmoe.chat.messages import Message, Tool, ToolCall
from localmoe.chat.request import GenerationRequest, JsonSchema
from localmoe.chat.usage import Usage
from localmoe.server.answer import Answer
from localmoe.server.api_error import ApiError
from localmoe.server.body import Body, Count, Request, Share, StopTexts, Temperature, TopK, refuse
from localmoe.server.chat_completions import new_id
from localmoe.server.openai_parts import MAX_ITEMS
from localmoe.server.service import Service
from localmoe.server.tool_results import arguments_object, json_text


class Block(Body):
    """A part of a message."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | Annotated[list[Any], Field(max_length=MAX_ITEMS)] | None = None
    is_error: bool | None = None


Blocks = str | Annotated[list[Block], Field(max_length=MAX_ITEMS)]


class Turn(Body):
    """One message."""

    role: Literal["user", "assistant", "system"]
    content: Blocks

    def messages(self, names: dict[str, str]) -> list[Message]:
        """Return it as the chat has it; `names` has the tool of each earlier call by its id."""
        if isinstance(self.content, str):
            return [Message(self.role, self.content)]
        results, texts, thoughts, calls = [], [], [], []
        for block in self.content:
            if block.type == "text":
                texts.append(block.text or "")
            elif block.type == "thinking":
                thoughts.append(block.thinking or "")
            elif block.type == "tool_use":
                call = ToolCall(block.id or "", block.name or "", json_text(block.input or {}))
                calls.append(call)
                names[call.id] = call.name
            elif block.type == "tool_result":
                results.append(_result(block, names))
            elif block.type != "redacted_thinking":
                raise refuse("messages", f"has a block of type {block.type[:40]!r}: it is not read")
        text, thought = "\n".join(texts), "\n".join(thoughts) or None
        # What a user says beside results comes after them.
        if text or calls or thought or not results:
            results.append(Message(self.role, text, thought, tuple(calls)))
        return results


class AnthropicTool(Body):
    """A tool that the model may call."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.:-]{1,128}$")]
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None

    def tool(self) -> Tool:
        """Return it as the chat has it. Raises ApiError for tools that Anthropic's servers run."""
        if self.type not in (None, "custom"):
            raise refuse("tools", f"has one of type {self.type[:40]!r}, which is not known here")
        return Tool(self.name, self.description or "", self.input_schema or {})


class ToolChoice(Body):
    """Whether a tool has to be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Body):
    """Whether the model is to think first."""

    type: Literal["enabled", "disabled", "adaptive"]


class OutputFormat(Body):
    """What the answer has to look like."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Body):
    """Options of the answer."""

    effort: str | None = None
    format: OutputFormat | None = None


class CountRequest(Request):
    """What tokens are counted of."""

    model: str
    messages: Annotated[list[Turn], Field(min_length=1, max_length=MAX_ITEMS)]
    system: Blocks | None = None
    tools: Annotated[list[AnthropicTool], Field(max_length=MAX_ITEMS)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None

    def conversation(self) -> tuple[Message, ...]:
        """Return the messages as the chat has them. Raises ApiError."""
        names: dict[str, str] = {}
        messages = [message for turn in self.messages for message in turn.messages(names)]
        if self.system:
            system = Turn(role="system", content=self.system)
            messages = [*system.messages(names), *messages]
        return tuple(messages)

    def request(self, service: Service) -> GenerationRequest:
        """Return it as the chat has it. Raises ApiError, SettingsError."""
        config = self.output_config or OutputConfig()
        options: dict[str, Any] = {"reasoning_effort": config.effort} if config.effort else {}
        if self.thinking is not None and self.thinking.type == "disabled":
            options |= service.thinking_off()
        return GenerationRequest(
            self.conversation(),
            tools=tuple(tool.tool() for tool in self.tools or ()),
            tool_choice=self._choice(),
            response_format=JsonSchema(config.format.schema_) if config.format else None,
            template_options=options,
        )

    def _choice(self) -> str:
        choice = self.tool_choice
        if choice is None:
            return "auto"
        if choice.type == "tool":
            if not choice.name:
                raise ApiError(400, "tool_choice of type tool needs a name", param="tool_choice")
            return choice.name
        return {"any": "required"}.get(choice.type, choice.type)


class MessagesRequest(CountRequest):
    """A request for an answer."""

    max_tokens: Count
    stream: bool | None = None
    stop_sequences: StopTexts | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: TopK | None = None

    def request(self, service: Service) -> GenerationRequest:
        """Return it as the chat has it. Raises ApiError, SettingsError."""
        return replace(
            super().request(service),
            sampling=service.sampling(
                temperature=self.temperature, top_p=self.top_p, top_k=self.top_k
            ),
            max_tokens=self.max_tokens,
            stop=tuple(self.stop_sequences or ()),
        )

    @property
    def most_calls(self) -> int:
        """After how many calls of tools the answer ends; 0: there is no bound."""
        choice = self.tool_choice
        return 1 if choice and choice.disable_parallel_tool_use else 0


def message(answer: Answer, service: Service) -> dict[str, Any]:
    """Return a whole answer."""
    content: list[dict[str, Any]] = []
    if answer.reasoning:
        content.append({"type": "thinking", "thinking": answer.reasoning, "signature": ""})
    if answer.text:
        content.append({"type": "text", "text": answer.text})
    for call in answer.calls:
        arguments = arguments_object(call.arguments)
        content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": arguments})
    end = answer.end
    return {
        **message_head(service),
        "content": content,
        "stop_reason": stop_reason(end.finish, end.stop_text),
        "stop_sequence": end.stop_text,
        "usage": usage_of(end.usage),
    }


def message_head(service: Service) -> dict[str, Any]:
    """Return what an answer is named by."""
    return {"id": new_id("msg"), "type": "message", "role": "assistant", "model": service.model}


def stop_reason(finish: Finish, stop_text: str | None) -> str:
    """Return why an answer ended, in Anthropic's words."""
    if stop_text is not None:
        return "stop_sequence"
    reasons = {
        "length": "max_tokens",
        "context": "model_context_window_exceeded",
        "tool_calls": "tool_use",
    }
    return reasons.get(finish, "end_turn")


def usage_of(usage: Usage) -> dict[str, int]:
    """Return what an answer cost; tokens that were known already are counted apart."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.answer_tokens,
    }


def _result(block: Block, names: dict[str, str]) -> Message:
    parts = block.content or ""
    if isinstance(parts, list):
        texts = []
        for part in parts:
            if not isinstance(part, dict) or not isinstance(part.get("text"), str):
                raise refuse("messages", "has a tool_result with a part that is no text")
            texts.append(part["text"])
        parts = "\n".join(texts)
    if block.is_error:
        parts = f"Error: {parts}"
    number = block.tool_use_id or ""
    return Message("tool", parts, tool_call_id=number, name=names.get(number))
