"""Answers held to a schema or a grammar, whatever the model would rather say."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

import numpy as np
import pytest

from chat_streams import ARGUMENTS, STREAMS, TOOLS, shown
from golden_templates import CASES, dialect
from localmoe.chat.constraint import Constraints, Vocabulary
from localmoe.chat.dialect import Dialect
from localmoe.chat.events import (
    Event,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallStart,
    merged,
)
from localmoe.chat.generator import Generator
from localmoe.chat.messages import Message, Tool
from localmoe.chat.request import GenerationRequest, Grammar, JsonSchema
from localmoe.chat.sampling import SamplingOptions
from localmoe.chat.templates import CHATML, ChatTemplate
from localmoe.errors import ChatError, ConstraintError
from scripted import MarkupTokenizer, ScriptedEngine

PERSON = JsonSchema(
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"enum": [1, 22]}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)


def asking(**options: Any) -> GenerationRequest:
    options.setdefault("sampling", SamplingOptions(temperature=0))
    options.setdefault("max_tokens", 400)
    return GenerationRequest((Message("user", "?"),), **options)


def answered(generator: Generator, request: GenerationRequest) -> list[Event]:
    generation = generator.generate(request)
    events = merged(piece.event for piece in generation)
    assert generation.finish in ("stop", "tool_calls")
    return events


def chatml(script: str) -> Generator:
    return Generator(ScriptedEngine(script=[script]), Dialect(ChatTemplate(CHATML)))


def test_an_answer_is_what_the_schema_allows() -> None:
    events = answered(chatml('{"name": "Ada Lovelace", "age": 7}'), asking(response_format=PERSON))
    value = json.loads(shown(events))
    assert value["age"] in (1, 22)
    assert len(value["name"]) <= 8
    assert value["name"].startswith("Ada")


def test_an_answer_that_fits_is_what_the_model_says() -> None:
    said = '{"name": "Ada", "age": 22}'
    assert answered(chatml(said), asking(response_format=PERSON)) == [TextDelta(said)]


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        (Grammar(r"(yes|no), [a-c]{2}", "regex"), r"(yes|no), [a-c]{2}"),
        (Grammar('start: "Paris" | "Rome" TAIL\nTAIL: /[!?]/'), r"Paris|Rome[!?]"),
        (JsonSchema({"type": "boolean"}), r"true|false"),
        (JsonSchema({"type": "number", "multipleOf": 0.25, "maximum": 9}), r"-?\d[\d.]*"),
        (JsonSchema({}), r"\{[^\x00]*\}"),
    ],
)
def test_grammars_of_every_kind_are_followed(form: Any, pattern: str) -> None:
    for said in ("no way", "Rome, I think", "true", '{"a": 1}'):
        text = shown(answered(chatml(said), asking(response_format=form)))
        assert re.fullmatch(pattern, text), text


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (JsonSchema({"type": "no such type"}), "JSON schema cannot constrain"),
        (JsonSchema({"type": "string", "pattern": "("}), "JSON schema cannot constrain"),
        (JsonSchema({"$ref": "#/nowhere"}), "JSON schema cannot constrain"),
        (JsonSchema({"a": object()}), "not JSON"),
        (JsonSchema({"type": "integer", "multipleOf": 9999991}), "multipleOf"),
        (JsonSchema({"items": [{"type": "number", "multipleOf": 0.1234567}]}), "multipleOf"),
        (JsonSchema({"type": "number", "multipleOf": 1e22}), "multipleOf"),
        (JsonSchema({"$ref": "#"}), "JSON schema cannot constrain"),
        (JsonSchema({"enum": ["x" * 2_000_000]}), "2000"),
        (Grammar('start: "\ud800"'), "grammar cannot constrain"),
        (Grammar("start: ("), "grammar cannot constrain"),
        (Grammar("("), "grammar cannot constrain"),
        (Grammar("(", "regex"), "regular expression cannot constrain"),
    ],
)
def test_what_cannot_be_followed_is_one_clear_error(form: Any, reason: str) -> None:
    generator = chatml("x")
    with pytest.raises(ConstraintError, match=reason) as error:
        generator.generate(asking(response_format=form))
    assert len(str(error.value)) < 500
    assert "\n" not in str(error.value)


# Those have free text in their calls, or thoughts, of which this engine finds no end.
ENDLESS = {
    *("trinity-large-thinking", "qwen3-coder", "qwen3.5", "deepseek-v3.2", "glm-4.6", "glm-4.7"),
    "gpt-oss",
}
JSON_CALL = '{"name": "get_weather", "parameters": {"city": "Zürich", "days": 2}}'


def made_to_call(name: str, choice: str, control: bool, said: str) -> list[Event]:
    """Return what a family says that has to call a tool; where it has to think first, it does."""
    known = dialect(name)
    request = asking(tools=TOOLS, tool_choice=choice)
    markers = sorted(known.parser(request, "").markers) if control else ()
    begun = STREAMS[name].thoughts.startswith("Let") and not CASES[name].options
    engine = ScriptedEngine(
        script=[f"So.</think>{said}" if begun else said], tokenizer=MarkupTokenizer(markers)
    )
    events = answered(Generator(engine, known), request)
    if begun:
        assert events.pop(0) == ReasoningDelta("So.")
    return events


@pytest.mark.parametrize("control", [True, False], ids=["tokens", "text"])
@pytest.mark.parametrize("choice", ["required", "get_weather"])
@pytest.mark.parametrize("name", CASES)
def test_the_grammar_of_a_call_has_the_form_that_a_family_writes(
    name: str, choice: str, control: bool
) -> None:
    call = JSON_CALL if name == "llama-4" else STREAMS[name].call
    start, delta = made_to_call(name, choice, control, call)
    assert isinstance(start, ToolCallStart)
    assert start.name == "get_weather"
    assert delta == ToolCallDelta(0, ARGUMENTS)


@pytest.mark.parametrize("control", [True, False], ids=["tokens", "text"])
@pytest.mark.parametrize("name", sorted(CASES.keys() - ENDLESS))
def test_a_family_calls_a_tool_that_it_would_rather_not(name: str, control: bool) -> None:
    start, delta = made_to_call(name, "get_weather", control, "I would rather not.")
    assert isinstance(start, ToolCallStart)
    assert isinstance(delta, ToolCallDelta)
    assert isinstance(json.loads(delta.arguments)["city"], str)


def test_thoughts_are_free_and_the_answer_is_not() -> None:
    known = dialect("qwen3.5")
    engine = ScriptedEngine(script=["Hm, JSON? No.</think>\n\nOf course."])
    events = answered(Generator(engine, known), asking(response_format=PERSON))
    assert events[0] == ReasoningDelta("Hm, JSON? No.")
    assert json.loads(shown(events))["age"] in (1, 22)


def test_thoughts_may_begin_with_their_own_token_or_be_left_out() -> None:
    known = dialect("qwen3")
    tokenizer = MarkupTokenizer(("<think>", "</think>"))
    for said, thoughts in (("<think>Hm.</think>No.", [ReasoningDelta("Hm.")]), ("No.", [])):
        engine = ScriptedEngine(script=[said], tokenizer=tokenizer)
        events = answered(Generator(engine, known), asking(response_format=PERSON))
        assert events[:-1] == thoughts
        assert json.loads(shown(events))["age"] in (1, 22)


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        (PERSON, r"\{.*\}"),
        (Grammar(r"a/b|c\/d", "regex"), r"a/b|c/d"),
        (Grammar('start: "yes" | "no"'), "yes|no"),
    ],
)
def test_gpt_oss_thinks_on_its_channel_and_answers_as_it_must(form: Any, pattern: str) -> None:
    known = dialect("gpt-oss")
    tokenizer = MarkupTokenizer(sorted(known.parser(asking(), "").markers), ends=("<|return|>",))
    thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    for said in (f"{thought}<|channel|>final<|message|>no", "<|channel|>final<|message|>no"):
        engine = ScriptedEngine(script=[said], tokenizer=tokenizer)
        events = answered(Generator(engine, known), asking(response_format=form))
        assert events[:-1] == ([ReasoningDelta("Hm.")] if thought in said else [])
        assert re.fullmatch(pattern, shown(events), re.DOTALL)


def test_a_mask_leaves_the_logits_of_what_may_come_and_ends_when_it_is_over() -> None:
    tokenizer = MarkupTokenizer(("<|x|>",))
    constraint = Constraints(tokenizer).make(Grammar("ab", "regex"))
    logits = np.arange(tokenizer.n_vocab, dtype=np.float32)
    for letter in b"ab":
        masked = constraint.masked(logits)
        assert masked.dtype == np.float32
        assert np.flatnonzero(np.isfinite(masked)).tolist() == [letter]
        assert masked[letter] == logits[letter]
        constraint.accept(letter)
    allowed = np.flatnonzero(np.isfinite(constraint.masked(logits))).tolist()
    assert allowed == [t for t in range(tokenizer.n_vocab) if tokenizer.is_end(t)]
    constraint.accept(allowed[0])


class SpaceTokenizer(MarkupTokenizer):
    """Puts a space before every text, as some vocabularies do."""

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return super().encode(f" {text}", special=special)


def test_a_vocabulary_has_the_bytes_of_its_tokens_and_encodes_to_them() -> None:
    for make in (MarkupTokenizer, SpaceTokenizer):
        words = Vocabulary(make(("<|x|>",)))
        assert b"".join(words.tokens[token] for token in words("né{")) == "né{".encode()
        assert words.tokens[260] == b"<|x|>"
        assert 260 in words.special_token_ids
    assert words(b"\xff") == [0xFF]


def test_a_vocabulary_without_an_end_is_refused() -> None:
    tokenizer = MarkupTokenizer()
    tokenizer._ends = set()
    with pytest.raises(ConstraintError, match="no token that ends"):
        Constraints(tokenizer).make(PERSON)


@pytest.mark.parametrize("name", ["qwen3", "qwen3.5", "glm-4.7", "deepseek-v3.2", "gpt-oss"])
@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "object", "properties": 5, "required": 7},
        {"type": "object", "properties": {"a": True, "b": 5, "c": {"type": 9}}},
        {"type": "object", "properties": {"a": {"enum": []}}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": {}}},
        {"type": "object", "properties": {'"\n\\<': {"type": "integer"}}},
        {"properties": {"\ud800": {}}, "required": ["\ud800"]},
    ],
)
def test_schemas_that_nobody_has_checked_are_followed_or_refused(
    name: str, parameters: dict[str, Any]
) -> None:
    tool = Tool("f", parameters=parameters)
    engine = ScriptedEngine(script=lambda prompt: "<tool_call>")
    engine.tokenizer.encode = surrogates_replaced(engine.tokenizer.encode)  # type: ignore[method-assign]
    generator = Generator(engine, dialect(name))
    request = asking(tools=(tool,), tool_choice="f", max_tokens=30)
    with contextlib.suppress(ChatError):
        for piece in generator.generate(request):
            assert piece.event


def surrogates_replaced(encode: Any) -> Any:
    """Return an encoder that takes any text, as those of engines do."""
    return lambda text, special=True: encode(
        text.encode(errors="replace").decode(), special=special
    )
