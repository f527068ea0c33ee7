"""Calls of tools in every syntax: well-formed, sloppy, broken and hostile ones."""

from __future__ import annotations

import json
import time

import pytest

from chat_streams import (
    ARGUMENTS,
    GLM,
    HERMES,
    KIMI,
    QWEN,
    STREAMS,
    THOUGHT,
    call_events,
    events_of,
    has_notice,
    parser_of,
    shown,
)
from localmoe.chat.events import (
    Notice,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallStart,
)
from localmoe.chat.tools.arguments import typed_value
from localmoe.chat.tools.parser import MAX_CALL_CHARACTERS
from localmoe.chat.tools.pythonic import read_calls


def arguments_of(name: str, text: str) -> object:
    """Return the arguments of the only call in a text."""
    (delta,) = (e for e in events_of(parser_of(name), [text]) if isinstance(e, ToolCallDelta))
    return json.loads(delta.arguments)


def own_id(name: str) -> str | None:
    return "functions.get_weather:0" if name.startswith("kimi") else None


@pytest.mark.parametrize("name", STREAMS)
def test_a_family_thinks_and_calls(name: str) -> None:
    stream = STREAMS[name]
    events = events_of(parser_of(name), [stream.thoughts + stream.call])
    thoughts = [THOUGHT] if stream.thoughts else []
    assert events == [*thoughts, *call_events(call_id=own_id(name))]


@pytest.mark.parametrize("name", STREAMS)
def test_a_family_thinks_and_answers(name: str) -> None:
    stream = STREAMS[name]
    events = events_of(parser_of(name), [stream.thoughts + stream.answer])
    assert events == [*([THOUGHT] if stream.thoughts else []), TextDelta(stream.shown)]


@pytest.mark.parametrize("name", sorted(STREAMS.keys() - {"gpt-oss", "llama-4"}))
def test_words_may_come_before_a_call_and_calls_after_each_other(name: str) -> None:
    call = STREAMS[name].call
    events = events_of(parser_of(name), [f"{STREAMS[name].thoughts}I look.\n\n{call}\n{call}\n"])
    thoughts = [THOUGHT] if STREAMS[name].thoughts else []
    first = call_events(0, own_id(name))
    # A model's own id counts once.
    second = "id-0" if own_id(name) else "id-1"
    assert events == [*thoughts, TextDelta("I look."), *first, *call_events(1, second)]


@pytest.mark.parametrize("name", sorted(STREAMS))
def test_without_tools_a_call_is_text(name: str) -> None:
    call = STREAMS[name].call
    events = events_of(parser_of(name, tools=()), [STREAMS[name].thoughts + call])
    assert not any(isinstance(event, ToolCallStart) for event in events)
    assert "Zürich" in shown(events)


@pytest.mark.parametrize("name", sorted(STREAMS))
def test_a_call_that_was_cut_off_is_text_and_a_notice(name: str) -> None:
    call = STREAMS[name].call
    cut = call[: call.index("rich")]
    events = events_of(parser_of(name), [STREAMS[name].thoughts + cut])
    assert not any(isinstance(event, ToolCallStart) for event in events)
    assert "Zü" in shown(events)
    assert has_notice(events)


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("qwen3", '<tool_call>{"name": "f", "arguments": {bad}}</tool_call>'),
        ("qwen3", '<tool_call>{"name": 5, "arguments": {}}</tool_call>'),
        ("qwen3", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
        ("qwen3", "<tool_call></tool_call>"),
        ("qwen3", "<tool_call>" + "[" * 100_000 + "</tool_call>"),
        ("qwen3", '<tool_call>{"name": "f", "arguments": {"n": NaN}}</tool_call>'),
        ("qwen3", '<tool_call>{"name": "f", "arguments": {"n": 1e999}}</tool_call>'),
        ("qwen3", '<tool_call>{"name": "' + "f" * 300 + '"}</tool_call>'),
        ("qwen3", '<tool_call>{"name": "f", "arguments": {"n": ' + "9" * 5000 + "}}</tool_call>"),
        ("qwen3.5", "<tool_call>\n<function=>\n</function>\n</tool_call>"),
        ("qwen3.5", "<tool_call>\nget_weather\n</tool_call>"),
        ("qwen3.5", "<tool_call>\n<function=f>\nwords</function>\n</tool_call>"),
        ("qwen3.5", '<tool_call>{"name": "f", "arguments": {}}</tool_call>'),
        ("glm-4.7", "<tool_call>f<arg_key>k</arg_key>v</tool_call>"),
        ("glm-4.7", "<tool_call></tool_call>"),
        ("kimi-k2.5", "<|tool_call_begin|>functions.f:0{}<|tool_call_end|>"),
        ("kimi-k2.5", "<|tool_call_begin|>f g<|tool_call_argument_begin|>{}<|tool_call_end|>"),
        ("deepseek-v3.1", "<｜tool▁call▁begin｜>f{}<｜tool▁call▁end｜>"),
        ("deepseek-r1", "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\nno<｜tool▁call▁end｜>"),
        ("deepseek-v3.2", "<｜DSML｜invoke >x</｜DSML｜invoke>"),
        ("mistral-large-3", "[TOOL_CALLS]f[ARGS]{bad}"),
        ("mistral-large-3", "[TOOL_CALLS][1]"),
        ("mistral-large-3", "[TOOL_CALLS] I would call it"),
        ("llama-4", "[get_weather(city=)]"),
        ("llama-4", "[get_weather('Zürich')]"),
        ("llama-4", '{"name": "get_weather", "parameters": 5}'),
    ],
)
def test_a_malformed_call_is_text_and_a_notice(name: str, broken: str) -> None:
    events = events_of(parser_of(name, prompt="..."), [broken])
    assert shown(events) == broken
    assert has_notice(events)
    assert len(events) == 2


def test_a_malformed_call_for_gpt_oss_is_text_and_a_notice() -> None:
    text = "<|channel|>commentary to=functions.f<|message|>{bad}<|call|>"
    events = events_of(parser_of("gpt-oss"), [text])
    assert shown(events) == "{bad}"
    assert has_notice(events)


def test_a_good_call_inside_of_a_broken_one_is_made() -> None:
    events = events_of(parser_of("qwen3", prompt=""), [f"Now: <tool_call>\nI mean {HERMES}"])
    assert events[-2:] == call_events()
    assert shown(events) == "Now: <tool_call>\nI mean "


def test_text_after_a_broken_call_goes_on() -> None:
    events = events_of(parser_of("qwen3", prompt=""), ["a <tool_call>b</tool_call> c"])
    assert shown(events) == "a <tool_call>b</tool_call> c"


def test_a_closing_tag_inside_of_a_value_belongs_to_it() -> None:
    value = "write </tool_call> and </function> and </parameter> here"
    hermes = json.dumps({"name": "note", "arguments": {"text": value}})
    assert arguments_of("qwen3", f"<tool_call>{hermes}</tool_call>") == {"text": value}
    qwen = QWEN.replace("get_weather", "note").replace("=city", "=text").replace("Zürich", value)
    assert arguments_of("qwen3-coder", qwen) == {"text": value, "days": "2"}
    glm = GLM.replace("city", "text").replace("Zürich", "a </tool_call> b")
    assert arguments_of("glm-4.6", glm) == {"text": "a </tool_call> b", "days": 2}


def test_a_call_without_its_last_tag_is_made_when_the_answer_is_over() -> None:
    assert arguments_of("qwen3", HERMES.removesuffix("</tool_call>")) == json.loads(ARGUMENTS)
    assert arguments_of("qwen3-coder", QWEN.removesuffix("</tool_call>")) == json.loads(ARGUMENTS)
    assert arguments_of("kimi-k2-instruct", KIMI.split("<|tool_call_end|>")[0]) == json.loads(
        ARGUMENTS
    )


def test_qwen_may_forget_the_outer_tag() -> None:
    bare = QWEN.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")
    assert events_of(parser_of("qwen3-coder"), [bare]) == call_events()
    assert events_of(parser_of("qwen3-coder"), [f"{bare}\n</tool_call>"]) == call_events()


def test_a_call_ends_thoughts_that_have_no_closing_tag() -> None:
    for name, call in (("qwen3.5", QWEN), ("kimi-k2.5", KIMI)):
        events = events_of(parser_of(name), [f"Let me see.\n{call}"])
        assert events == [THOUGHT, *call_events(call_id=own_id(name))]


def test_arguments_get_the_types_of_the_schema() -> None:
    values = {
        "text": ("5", "5"),
        "n": ("2.5", 2.5),
        "tags": ('["a", "b"]', ["a", "b"]),
        "done": ("True", True),
        "more": ('{"x": 1}', {"x": 1}),
        "unknown": ("7", "7"),
    }
    body = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, (v, _) in values.items())
    text = f"<tool_call>\n<function=note>\n{body}</function>\n</tool_call>"
    assert arguments_of("qwen3-coder", text) == {key: value for key, (_, value) in values.items()}


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("5", {"type": "integer"}, 5),
        ("5.0", {"type": "integer"}, 5),
        ("5.5", {"type": "integer"}, "5.5"),
        ("x", {"type": "integer"}, "x"),
        ("true", {"type": "integer"}, "true"),
        ("none", {"type": ["string", "null"]}, None),
        ("5", {"type": ["string", "integer"]}, 5),
        ("5", {"anyOf": [{"type": "number"}, {"type": "null"}]}, 5),
        ("2", {"enum": [1, 2]}, 2),
        ("a", {"enum": ["a"]}, "a"),
        ("[1", {"type": "array"}, "[1"),
        ("9" * 5000, {"type": "integer"}, "9" * 5000),
        ("[" * 100_000, {"type": "array"}, "[" * 100_000),
        ("5", {"type": 7}, "5"),
        ("1e999", {"type": "number"}, "1e999"),
        ("NaN", {"type": "number"}, "NaN"),
        ("5", None, "5"),
        ("5", {}, "5"),
    ],
)
def test_a_text_becomes_a_value_of_its_type_or_stays_a_text(
    text: str, schema: object, value: object
) -> None:
    assert typed_value(text, schema) == value
    assert type(typed_value(text, schema)) is type(value)


def test_json_in_text_newlines_in_strings_and_half_characters_are_taken() -> None:
    call = '<tool_call>{"name": "note", "arguments": ARGS}</tool_call>'
    assert arguments_of("qwen3", call.replace("ARGS", '"{\\"n\\": 1}"')) == {"n": 1}
    assert arguments_of("qwen3", call.replace("ARGS", '{"text": "a\nb"}')) == {"text": "a\nb"}
    assert arguments_of("qwen3", call.replace("ARGS", "null")) == {}
    half = call.replace("ARGS", '{"text": "\\ud800"}')
    assert arguments_of("qwen3", half) == {"text": "\ud800"}


def test_the_older_forms_of_mistral_are_read() -> None:
    listed = '[TOOL_CALLS] [{"name": "note", "arguments": {"n": 1}, "id": "abcdefghi"}]'
    events = events_of(parser_of("mistral-large-3"), [listed])
    assert events == [ToolCallStart(0, "abcdefghi", "note"), ToolCallDelta(0, '{"n": 1}')]
    with_id = '[TOOL_CALLS]note[CALL_ID]abcdefghi[ARGS]{"n": 1}'
    assert events_of(parser_of("mistral-large-3"), [with_id]) == events


def test_llama_writes_json_too_and_other_json_is_an_answer() -> None:
    call = '{"name": "get_weather", "parameters": {"city": "Zürich", "days": 2}}'
    assert events_of(parser_of("llama-4"), [call]) == call_events()
    assert events_of(parser_of("llama-4"), [f"<|python_start|>[{call}]<|python_end|>"]) == (
        call_events()
    )
    for text in ('{"a": 1} and more', "[1] is a footnote", "[it's open", '[{"name": "x"}]'):
        assert events_of(parser_of("llama-4"), [text]) == [TextDelta(text)]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("f()", {}),
        ("[f(a=-1.5e3, b=True, c=None, d=null,)]", {"a": -1500.0, "b": True, "c": None, "d": None}),
        ("[f(a=[1, 'x',], b={'k': (1, 2)})]", {"a": [1, "x"], "b": {"k": [1, 2]}}),
        ("[f(a='it\\'s', b=\"\\u00e9\\n\", c='\\d\n')]", {"a": "it's", "b": "é\n", "c": "\\d\n"}),
    ],
)
def test_python_literals_are_read(text: str, values: object) -> None:
    assert read_calls(text) == [("f", values)]


@pytest.mark.parametrize(
    "text",
    ["", "[", "f", "f(", "f(1)", "f(a=)", "f(a=g())", "f(a=1) x", "f(a=1e999)", "f(a={1: 2})"]
    + ["f(a=" + "[" * 100_000, "f(a=__import__)", "f(a=1 b=2)", "f(a=[1 2])", "f(a='\\x')"],
)
def test_what_are_no_python_literals_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (each has its own words)
        read_calls(text)


def test_gpt_oss_speaks_on_several_channels() -> None:
    text = (
        "<|channel|>analysis<|message|>One.<|end|><|start|>assistant<|channel|>commentary"
        "<|message|>I look.<|end|><|start|>assistant<|channel|>analysis<|message|>Two.<|end|>"
        "<|start|>assistant to=functions.get_weather<|channel|>commentary json<|message|>"
        f"{ARGUMENTS}<|call|>"
    )
    assert events_of(parser_of("gpt-oss"), [text]) == [
        ReasoningDelta("One."),
        TextDelta("I look."),
        ReasoningDelta("\n\nTwo."),
        *call_events(),
    ]


def test_gpt_oss_without_any_markup_is_text() -> None:
    assert events_of(parser_of("gpt-oss"), ["Just words"]) == [TextDelta("Just words")]
    long = "word " * 1000
    assert events_of(parser_of("gpt-oss"), [long]) == [TextDelta(long)]


def test_ids_that_a_model_repeats_are_made_unique() -> None:
    events = events_of(parser_of("kimi-k2-instruct"), [KIMI + KIMI])
    ids = [event.id for event in events if isinstance(event, ToolCallStart)]
    assert ids == ["functions.get_weather:0", "id-0"]


@pytest.mark.parametrize("name", ["qwen3", "qwen3.5", "glm-4.7", "mistral-large-3", "llama-4"])
def test_a_call_without_end_takes_bounded_memory_and_becomes_text(name: str) -> None:
    call = STREAMS[name].call
    head = call[: call.index("rich")]
    parser = parser_of(name, prompt="")
    events = events_of(parser, [head, *("x" * 1000 for _ in range(MAX_CALL_CHARACTERS // 900))])
    assert has_notice(events)
    assert "x" * 1000 in shown(events)
    assert all(not isinstance(event, Notice) or len(event.text) < 300 for event in events)


def test_hostile_calls_take_time_in_proportion_to_their_length() -> None:
    start = time.process_time()
    for name, text in (
        ("qwen3", '<tool_call>{"name": "f", "arguments": "' + "</tool_call>" * 20_000),
        ("qwen3.5", "<tool_call><function=f><parameter=a>" + "</parameter>" * 20_000),
        ("deepseek-r1", "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json" + " " * 200_000),
        ("kimi-k2.5", "<|tool_call_begin|>" + "f:" * 100_000 + "<|tool_call_end|>"),
        ("llama-4", "[get_weather(city='" + "\\'" * 100_000),
        ("mistral-large-3", "[TOOL_CALLS]" + "[]" * 100_000),
    ):
        events_of(parser_of(name, prompt=""), (text[i : i + 50] for i in range(0, len(text), 50)))
    assert time.process_time() - start < 20
