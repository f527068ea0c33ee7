"""What every family's prompt looks like. `python tests/golden_templates.py` writes it anew."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from localmoe.chat.dialect import Dialect
from localmoe.chat.family import family_of
from localmoe.chat.messages import Message, Tool, ToolCall
from localmoe.chat.request import GenerationRequest
from localmoe.chat.templates import ChatTemplate

TEMPLATES = Path(__file__).parent / "data" / "templates"
GOLDEN = Path(__file__).parent / "golden" / "templates"


@dataclass(frozen=True)
class Case:
    """A model family, and how it is rendered."""

    template: str
    architecture: str
    options: Mapping[str, Any] = field(default_factory=dict)


THINKS = {"enable_thinking": True}
CASES = {
    "trinity-large-thinking": Case("trinity-large-thinking", "afmoe"),
    "trinity-large-preview": Case("chatml-hermes", "afmoe"),
    "trinity-mini": Case("chatml-think", "afmoe"),
    "deepseek-r1": Case("deepseek-r1", "deepseek2"),
    "deepseek-v3.1": Case("deepseek-v3.1", "deepseek2", THINKS),
    "deepseek-v3.2": Case("deepseek-v3.2", "deepseek32", THINKS),
    "kimi-k2-instruct": Case("kimi-k2-instruct", "deepseek2"),
    "kimi-k2-thinking": Case("kimi-k2-thinking", "deepseek2"),
    "kimi-k2.5": Case("kimi-k2.5", "deepseek2"),
    "qwen3": Case("qwen3", "qwen3moe"),
    "qwen3-coder": Case("qwen3-coder", "qwen3moe"),
    "qwen3-next-instruct": Case("chatml-hermes", "qwen3next"),
    "qwen3.5": Case("qwen3.5", "qwen35moe"),
    "glm-4.6": Case("glm-4.6", "glm4moe"),
    "glm-4.7": Case("glm-4.7", "glm4moe"),
    "gpt-oss": Case("gpt-oss", "gpt-oss", {"reasoning_effort": "low"}),
    "mistral-large-3": Case("mistral-large-3", "mistral4"),
    "ministral-3-reasoning": Case("ministral-3-reasoning", "mistral3"),
    "llama-4": Case("llama-4", "llama4"),
    "olmoe": Case("olmoe", "olmoe"),
}

WEATHER = Tool(
    "get_weather",
    "The weather of some days.",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
)
CALL = ToolCall("functions.get_weather:0", "get_weather", '{"city": "Zürich", "days": 2}')
TALK = (
    Message("system", "Be brief."),
    Message("user", "Hello!"),
    Message("assistant", "Hello. What can I do?", reasoning="THOUGHT-1: a greeting."),
    Message("user", "Do you know the weather?"),
    Message("assistant", "Where?", reasoning="THOUGHT-2: the city is missing."),
    Message("user", "In Zürich, two days."),
    Message("assistant", "", reasoning="THOUGHT-3: the tool knows.", tool_calls=(CALL,)),
    Message("tool", "18 degrees, rain", tool_call_id=CALL.id, name=CALL.name),
)


@functools.cache
def dialect(name: str) -> Dialect:
    """Return the dialect of a case, on a certain day."""
    case = CASES[name]
    source = (TEMPLATES / f"{case.template}.jinja").read_text()
    template = ChatTemplate(
        source, bos_text="<s>", eos_text="</s>", now=lambda: datetime.datetime(2026, 1, 2)
    )
    return Dialect(template, family_of(source, case.architecture))


def request(name: str, *, kept: bool = True, **more: Any) -> GenerationRequest:
    """Return the conversation, with or without what the assistant thought."""
    talk = TALK if kept else tuple(replace(each, reasoning=None) for each in TALK)
    more.setdefault("template_options", CASES[name].options)
    return GenerationRequest(talk, tools=(WEATHER,), **more)


def rendering(name: str, *, thoughts: bool) -> str:
    """Return the prompt of a case."""
    return dialect(name).prompt(request(name, kept=thoughts))


def golden_file(name: str, *, thoughts: bool) -> Path:
    """Return where a prompt is kept."""
    return GOLDEN / f"{name}.{'thoughts' if thoughts else 'plain'}.txt"


def write_all() -> None:
    """Write all prompts as they are now."""
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for name in CASES:
        for thoughts in (True, False):
            golden_file(name, thoughts=thoughts).write_text(rendering(name, thoughts=thoughts))


if __name__ == "__main__":
    write_all()
