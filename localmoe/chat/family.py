"""What a model's family wants, told from its template and its architecture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from localmoe.chat.request import Thoughts
from localmoe.chat.thinking import BRACKETS, THINK, ThinkTags

Place = Literal["reasoning_content", "reasoning", "thinking", "blocks", "tags"]
"""Where a template looks for earlier thoughts: a key of the message, a list of blocks in its
content, or tags in its content."""


@dataclass(frozen=True)
class Family:
    """How a model was trained to think and to call tools."""

    calls: str | None = None
    """A name in `tools.table`; None: its template shows no syntax that is known there."""
    knows_tools: bool = False
    """Whether its template tells the model of tools."""
    is_harmony: bool = False
    """gpt-oss's channels, for thoughts and calls."""
    tags: ThinkTags | None = None
    place: Place = "tags"
    thoughts: Thoughts = "strip"
    """Which earlier thoughts the template is given; it may leave out more."""
    keep_options: Mapping[str, Any] | None = None
    """What keeps the template from leaving out thoughts, where something does."""
    no_thinking: Mapping[str, Any] | None = None
    """Template variables that turn thinking off; None: nothing does."""
    knows_effort: bool = False
    """Whether its template has a reasoning_effort."""
    short_ids: bool = False
    """Ids of calls are nine letters and digits."""
    knows_developer: bool = False


# In this order: several templates hold the markup of another family, too.
_CALLS = (
    ("[TOOL_CALLS] [", "mistral-list"),
    ("[TOOL_CALLS][", "mistral-list"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|tool_call_begin|>", "kimi"),
    ("｜DSML｜", "dsml"),  # noqa: RUF001
    ("<｜tool▁call▁begin｜>", "deepseek"),  # noqa: RUF001
    ("<function=", "qwen3_coder"),
    ("</arg_key>\n", "glm-lines"),
    ("<arg_key>", "glm"),
    ("<|python_start|>", "llama"),
    ("<|python_tag|>", "llama"),
    ("<|header_start|>", "llama"),
    ("<tool_call>", "hermes"),
)
# What tells an older or a newer form of the same markup.
_FORMS = {
    "dsml": ("function_calls>", "dsml-functions"),
    "deepseek": ("```json", "deepseek-fenced"),
}

# Templates that look for thoughts decide themselves which of them the model sees: they are given
# all. This is for those that do not: what the architecture was trained to see between tags.
_THOUGHTS: dict[str, Thoughts] = {"afmoe": "keep"}

_KEEPERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("clear_thinking", {"clear_thinking": False}),
    ("preserve_thinking", {"preserve_thinking": True}),
    ("drop_thinking", {"drop_thinking": False}),
)
_THINKING_SWITCH = re.compile(r"(?<![.\w'\"])thinking\s+is\s|\bif\s+(?:not\s+)?thinking\b")
_REASONING_KEY = re.compile(r"\.reasoning\b|['\"]reasoning['\"]")


def family_of(source: str, architecture: str, *, has_think_token: bool = False) -> Family:
    """Return the family of a template; `has_think_token`: the vocabulary has <think>."""
    calls = _calls_of(source)
    if "<|channel|>" in source:
        return Family(
            is_harmony=True,
            knows_tools=True,
            place="thinking",
            thoughts="keep",
            knows_effort="reasoning_effort" in source,
            knows_developer=True,
        )
    tags = None
    if "[THINK]" in source:
        tags = BRACKETS
    elif "<think>" in source or "</think>" in source or has_think_token:
        tags = THINK
    place = _place_of(source)
    default = "keep" if place != "tags" else _THOUGHTS.get(architecture, "strip")
    return Family(
        calls=calls,
        knows_tools=calls is not None and re.search(r"\btools\b", source) is not None,
        tags=tags,
        place=place,
        thoughts=default,
        keep_options=next((options for name, options in _KEEPERS if name in source), None),
        no_thinking=_switch_of(source),
        knows_effort="reasoning_effort" in source,
        short_ids=calls in ("mistral", "mistral-list"),
        knows_developer="developer" in source,
    )


def _calls_of(source: str) -> str | None:
    name = next((name for mark, name in _CALLS if mark in source), None)
    mark, form = _FORMS.get(name or "", ("", ""))
    return form if mark and mark in source else name


def _place_of(source: str) -> Place:
    if "reasoning_content" in source:
        return "reasoning_content"
    if "message.thinking" in source:
        return "thinking"
    if "block['thinking']" in source or 'block["thinking"]' in source:
        return "blocks"
    return "reasoning" if _REASONING_KEY.search(source) else "tags"


def _switch_of(source: str) -> dict[str, Any] | None:
    if "enable_thinking" in source:
        return {"enable_thinking": False}
    return {"thinking": False} if _THINKING_SWITCH.search(source) else None
