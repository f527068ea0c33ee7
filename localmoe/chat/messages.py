"""What a conversation is made of: messages, calls of tools, and the tools themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "developer", "user", "assistant", "tool"]


@dataclass(frozen=True)
class ToolCall:
    """One call that the assistant made."""

    id: str
    """What the result is matched by."""
    name: str
    arguments: str
    """JSON text, an object."""


@dataclass(frozen=True)
class Tool:
    """A function that the assistant may call."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """JSON schema of the arguments, an object; empty: takes none, or anything."""


@dataclass(frozen=True)
class Message:
    """What one side said."""

    role: Role
    content: str
    reasoning: str | None = None
    """The assistant's thoughts before it spoke; None where there are none or nobody kept them."""
    tool_calls: tuple[ToolCall, ...] = ()
    """The assistant's calls, in order."""
    tool_call_id: str | None = None
    """Role "tool": which call this is the result of."""
    name: str | None = None
    """Role "tool": the name of the tool; else the name of who speaks."""
