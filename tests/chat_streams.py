"""Answers as each family writes them, and the events that they consist of."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from golden_templates import WEATHER, dialect
from localmoe.chat.dialect import Dialect
from localmoe.chat.events import (
    Event,
    Notice,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallStart,
    merged,
)
from localmoe.chat.messages import Message, Tool
from localmoe.chat.parser import AnswerParser
from localmoe.chat.request import GenerationRequest

NOTE = Tool(
    "note",
    "",
    {
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "n": {"type": "number"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "done": {"type": ["boolean", "null"]},
            "more": {"type": "object"},
        },
    },
)
TOOLS = (WEATHER, NOTE)
HERMES = (
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich", "days": 2}}\n</tool_call>'
)
QWEN = (
    "<tool_call>\n<function=get_weather>\n<parameter=city>\nZürich\n</parameter>\n"
    "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>"
)
GLM = (
    "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Zürich</arg_value>\n"
    "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>"
)
KIMI = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
    '<|tool_call_argument_begin|>{"city": "Zürich", "days": 2}<|tool_call_end|>'
    "<|tool_calls_section_end|>"
)
R1 = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
    '{"city": "Zürich", "days": 2}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
)
V31 = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
    '{"city": "Zürich", "days": 2}<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
)
DSML = (
    '<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n'
    '<｜DSML｜parameter name="city" string="true">Zürich</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="days" string="false">2</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n</｜DSML｜function_calls>"
)
MISTRAL = '[TOOL_CALLS]get_weather[ARGS]{"city": "Zürich", "days": 2}'
LLAMA = '[get_weather(city="Zürich", days=2)]'
HARMONY = (
    '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Zürich", '
    '"days": 2}<|call|>'
)


@dataclass(frozen=True)
class Stream:
    """What a model of a family says when it has thought (or not) and calls a tool."""

    thoughts: str
    """Comes before an answer or a call; "" where the family has none."""
    call: str
    answer: str = "It rains."
    shown: str = "It rains."


TAGGED = "<think>\nLet me see.\n</think>\n\n"
OPENED = "Let me see.\n</think>\n\n"
STREAMS = {
    "trinity-large-thinking": Stream(OPENED, QWEN),
    "trinity-large-preview": Stream("", HERMES),
    "trinity-mini": Stream(TAGGED, HERMES),
    "deepseek-r1": Stream(OPENED, R1),
    "deepseek-v3.1": Stream("", V31),
    "deepseek-v3.2": Stream("Let me see.</think>", DSML),
    "kimi-k2-instruct": Stream("", KIMI),
    "kimi-k2-thinking": Stream("<think>Let me see.</think>", KIMI),
    "kimi-k2.5": Stream("Let me see.</think>", KIMI),
    "qwen3": Stream(TAGGED, HERMES),
    "qwen3-coder": Stream("", QWEN),
    "qwen3-next-instruct": Stream("", HERMES),
    "qwen3.5": Stream(OPENED, QWEN),
    "glm-4.6": Stream("\n<think>Let me see.</think>\n", GLM),
    "glm-4.7": Stream("Let me see.</think>", GLM.replace("\n", "")),
    "gpt-oss": Stream(
        "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant",
        HARMONY,
        "<|channel|>final<|message|>It rains.<|return|>",
    ),
    "mistral-large-3": Stream("", MISTRAL),
    "ministral-3-reasoning": Stream("[THINK]Let me see.[/THINK]", MISTRAL),
    "llama-4": Stream("", LLAMA),
    "olmoe": Stream("", HERMES),
}
THOUGHT = ReasoningDelta("Let me see.")
ARGUMENTS = '{"city": "Zürich", "days": 2}'


def numbered(name: str) -> Dialect:
    """Return the dialect of a family whose calls are named id-0, id-1, ..."""
    numbers = itertools.count()
    known = dialect(name)
    return Dialect(known._renderer, known.family, new_id=lambda: f"id-{next(numbers)}")


def parser_of(
    name: str, tools: tuple[Tool, ...] = TOOLS, prompt: str | None = None
) -> AnswerParser:
    """Return a fresh parser of a family; the prompt is one that invites thoughts, if any does."""
    if prompt is None:
        begins_inside = STREAMS[name].thoughts.find("Let me see") == 0
        tags = dialect(name).family.tags
        prompt = f"...{tags.opening}\n" if tags and begins_inside else "..."
    request = GenerationRequest((Message("user", "?"),), tools=tools)
    return numbered(name).parser(request, prompt)


def events_of(parser: AnswerParser, pieces: Iterable[str]) -> list[Event]:
    """Return all events of a stream, deltas joined."""
    events: list[Event] = []
    for piece in pieces:
        events.extend(parser.feed(piece))
    return merged([*events, *parser.finish()])


def call_events(index: int = 0, call_id: str | None = None) -> list[Event]:
    """Return the events of the call that every stream makes."""
    start = ToolCallStart(index, call_id or f"id-{index}", "get_weather")
    return [start, ToolCallDelta(index, ARGUMENTS)]


def shown(events: Iterable[Event]) -> str:
    """Return the text of events alone."""
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def has_notice(events: Iterable[Event]) -> bool:
    """Whether somebody is warned."""
    return any(isinstance(event, Notice) for event in events)
