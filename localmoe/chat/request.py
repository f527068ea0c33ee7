"""What an answer is asked for with. Each request brings the whole conversation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from localmoe.chat.messages import Message, Tool
from localmoe.chat.sampling import SamplingOptions
from localmoe.errors import SettingsError

Thoughts = Literal["keep", "strip", "tool-loop"]
"""Which earlier thoughts the model sees: all, none, or those since the last user message."""

MAX_LOGPROBS = 20
"""As many likeliest tokens may be asked for at each place."""


@dataclass(frozen=True)
class JsonSchema:
    """The answer is JSON that this schema allows; {"type": "object"} allows any object."""

    schema: Mapping[str, Any]


@dataclass(frozen=True)
class Grammar:
    """The answer is what a grammar allows: Lark as llguidance reads it, or a regular expression."""

    text: str
    kind: Literal["lark", "regex"] = "lark"


@dataclass(frozen=True)
class GenerationRequest:
    """One answer. Raises SettingsError for what can be told to be wrong without a model."""

    messages: tuple[Message, ...] = ()
    prompt: str | tuple[int, ...] | None = None
    """Plain text, or tokens, in place of messages: no template, no thoughts, no tools."""
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    """"auto", "none", "required" (some tool), or the name of the tool that has to be called."""
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    max_tokens: int | None = None
    """Longest answer in tokens, thoughts included; None: as long as there is room."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer where they appear in it (not in thoughts); they are left out."""
    logprobs: int | None = None
    """None: none; 0: of the chosen tokens; n: of the n likeliest at each place, too."""
    response_format: JsonSchema | Grammar | None = None
    """What the answer (not the thoughts) must look like."""
    template_options: Mapping[str, Any] = field(default_factory=dict)
    """Variables for the chat template: enable_thinking, reasoning_effort, ..."""
    thoughts: Thoughts | None = None
    """Overrides what the model's family wants to see of earlier thoughts."""

    def __post_init__(self) -> None:
        if bool(self.messages) == (self.prompt is not None):
            raise SettingsError("a request needs messages or a prompt, and not both")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise SettingsError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise SettingsError(f"logprobs must be 0 to {MAX_LOGPROBS}, not {self.logprobs}")
        if not all(self.stop):
            raise SettingsError("a stop text must not be empty")
        names = [tool.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise SettingsError("two tools have the same name: each needs its own")
        self._check_choice(names)

    def _check_choice(self, names: list[str]) -> None:
        if self.tool_choice in ("auto", "none"):
            return
        if self.tool_choice == "required":
            if not names:
                raise SettingsError("tool_choice is required, but the request brings no tools")
        elif self.tool_choice not in names:
            raise SettingsError(
                f"tool_choice names {self.tool_choice!r}, which is not among the tools "
                f"({', '.join(names) or 'there are none'})"
            )
        if self.response_format is not None:
            raise SettingsError(
                "an answer cannot have to be a call of a tool and a response_format, too"
            )

    @property
    def offered_tools(self) -> tuple[Tool, ...]:
        """The tools that the model is told of: none where the choice is "none"."""
        return () if self.tool_choice == "none" else self.tools
