"""An answer's pieces make no difference to its events; whatever it says, nothing is raised."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_streams import (
    DSML,
    GLM,
    HARMONY,
    HERMES,
    KIMI,
    LLAMA,
    MISTRAL,
    QWEN,
    R1,
    STREAMS,
    V31,
    events_of,
    parser_of,
)
from localmoe.chat.events import ToolCallDelta
from localmoe.chat.stopping import StopTexts
from localmoe.chat.tools import parser as call_parser

MARKUP = (
    *("<think>", "</think>", "[THINK]", "[/THINK]", "<tool_call>", "</tool_call>", "<function=f>"),
    *("<function=", "<parameter=a>", "</parameter>", "</function>", "<arg_key>", "</arg_key>"),
    *("<arg_value>", "</arg_value>", "<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
    *("<|tool_call_argument_begin|>", "<|tool_call_end|>", "<|tool_calls_section_end|>"),
    *("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
    *("<｜DSML｜invoke", ' name="f">', "</｜DSML｜invoke>", "<｜DSML｜parameter", "｜DSML｜"),
    *("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_start|>", "<|python_end|>"),
    *("<|start|>", "assistant", "<|channel|>", "analysis", "final", "commentary", "<|message|>"),
    *(" to=functions.f", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>", "```json\n"),
)
BITS = (
    *(
        " ",
        "\n",
        "  \n\n",
        "a",
        "f",
        "{",
        "}",
        "[",
        "]",
        "(",
        ")",
        '"',
        "'",
        "\\",
        ",",
        ":",
        "=",
        "<",
    ),
    *(
        "{}",
        '{"a": 1}',
        '{"name": "note", "arguments": {}}',
        "[note()]",
        "note(",
        "text='",
        "1e999",
    ),
    *('<tool_call>{"name": "f", "arguments": {"n": ', "}}</tool_call>"),
    *("NaN", "-", "\ud7ff", "\x00", "🙂", '"\\ud800"', " " * 300, "x" * 70, "<" * 20, "[" * 40),
)
CALLS = (HERMES, QWEN, GLM, KIMI, R1, V31, DSML, MISTRAL, LLAMA, HARMONY)
TEXTS = st.lists(st.sampled_from((*MARKUP, *BITS, *CALLS)), max_size=14).map("".join)
FAMILIES = st.sampled_from(sorted(STREAMS))


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    places = sorted({cut % (len(text) + 1) for cut in cuts} | {0, len(text)})
    return [text[a:b] for a, b in zip(places, places[1:], strict=False)]


@settings(max_examples=600, deadline=None)
@given(name=FAMILIES, text=TEXTS, cuts=st.lists(st.integers(0, 10_000), max_size=12))
def test_pieces_make_no_difference(name: str, text: str, cuts: list[int]) -> None:
    whole = events_of(parser_of(name), [text])
    assert events_of(parser_of(name), pieces_of(text, cuts)) == whole
    assert events_of(parser_of(name), text) == whole


@settings(max_examples=300, deadline=None)
@given(name=FAMILIES, text=TEXTS)
def test_calls_are_well_formed_and_thoughts_come_first(name: str, text: str) -> None:
    for event in events_of(parser_of(name), [text]):
        if isinstance(event, ToolCallDelta):
            assert isinstance(json.loads(event.arguments, parse_constant=pytest.fail), dict)
            event.arguments.encode()


@pytest.mark.parametrize("name", sorted(STREAMS))
@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(0, 10_000), max_size=30), calls=st.booleans())
def test_every_family_s_own_answers_come_in_pieces(name: str, cuts: list[int], calls: bool) -> None:
    stream = STREAMS[name]
    text = stream.thoughts + (stream.call if calls else stream.answer)
    assert events_of(parser_of(name), pieces_of(text, cuts)) == events_of(parser_of(name), [text])


@settings(max_examples=150, deadline=None)
@given(name=FAMILIES, text=TEXTS, cuts=st.lists(st.integers(0, 10_000), max_size=12))
def test_pieces_make_no_difference_where_calls_become_too_long(
    name: str, text: str, cuts: list[int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(call_parser, "MAX_CALL_CHARACTERS", 40)
        patch.setattr("localmoe.chat.harmony.MAX_CALL_CHARACTERS", 40)
        patch.setattr("localmoe.chat.harmony._MAX_HEAD", 30)
        patch.setattr(call_parser, "_MAX_ENDS", 2)
        whole = events_of(parser_of(name), [text])
        assert events_of(parser_of(name), pieces_of(text, cuts)) == whole
        assert events_of(parser_of(name), text) == whole


@settings(max_examples=200, deadline=None)
@given(
    text=st.text("abc", max_size=30),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 100), max_size=6),
)
def test_a_stop_text_is_found_in_any_pieces(text: str, stops: list[str], cuts: list[int]) -> None:
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    scanner = StopTexts(stops)
    said = "".join(scanner.feed(piece) for piece in pieces_of(text, cuts)) + scanner.flush()
    assert said == text[: min(ends)[1] if ends else len(text)]
    assert (scanner.matched is not None) == bool(ends)
