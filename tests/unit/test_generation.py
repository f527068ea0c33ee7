"""Answers to requests: events, usage, why they end, and what they leave behind."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chat_streams import ARGUMENTS, HERMES, STREAMS, TOOLS, shown
from golden_templates import CASES, dialect
from localmoe.chat.dialect import Dialect, dialect_for
from localmoe.chat.events import (
    Event,
    Notice,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallStart,
    merged,
)
from localmoe.chat.generation import Generation
from localmoe.chat.generator import Generator
from localmoe.chat.messages import Message
from localmoe.chat.request import GenerationRequest
from localmoe.chat.sampling import SamplingOptions
from localmoe.chat.templates import CHATML, ChatTemplate
from localmoe.errors import (
    ChatError,
    ContextFullError,
    EngineError,
    ExpertReadError,
    SettingsError,
)
from scripted import MarkupTokenizer, ScriptedEngine

GREEDY = SamplingOptions(temperature=0)
HELLO = (Message("user", "Hello!"),)


def asking(messages: tuple[Message, ...] = HELLO, **options: Any) -> GenerationRequest:
    return GenerationRequest(messages, sampling=GREEDY, **options)


def chatml(*script: str, **options: Any) -> tuple[Generator, ScriptedEngine]:
    engine = ScriptedEngine(script=script, **options)
    return Generator(engine, Dialect(ChatTemplate(CHATML))), engine


def speaking(name: str, *script: str) -> tuple[Generator, ScriptedEngine]:
    """Return a generator for a family, whose markup is one control token each."""
    known = dialect(name)
    tokenizer = MarkupTokenizer(sorted(known.parser(asking(tools=TOOLS), "").markers))
    engine = ScriptedEngine(script=script, tokenizer=tokenizer)
    return Generator(engine, known), engine


def events_of(generation: Generation) -> list[Event]:
    return merged(piece.event for piece in generation)


def test_an_answer_is_text_and_ends_by_itself() -> None:
    generator, engine = chatml("Hello, you.")
    generation = generator.generate(asking())
    assert generation.finish is None
    assert events_of(generation) == [TextDelta("Hello, you.")]
    assert generation.finish == "stop"
    usage = generation.usage
    assert (usage.prompt_tokens, usage.cached_tokens) == (len(engine.tokenizer.encode(
        engine.prompts[0])), 0)  # fmt: skip
    assert (usage.answer_tokens, usage.reasoning_tokens) == (11, 0)
    assert usage.seconds > 0


def test_the_next_request_computes_only_what_is_new() -> None:
    generator, engine = chatml("One.", "Two.")
    events_of(generator.generate(asking()))
    held = engine.position
    talk = (*HELLO, Message("assistant", "One."), Message("user", "More?"))
    generation = generator.generate(asking(talk))
    events_of(generation)
    assert generation.usage.cached_tokens == held
    assert generation.usage.prefill.tokens == generation.usage.prompt_tokens - held


@pytest.mark.parametrize("name", CASES)
def test_every_family_thinks_and_calls_a_tool(name: str) -> None:
    stream = STREAMS[name]
    script = f"{stream.thoughts if 'Let' not in stream.thoughts[:3] else ''}{stream.call}"
    generator, _ = speaking(name, script)
    options = {"enable_thinking": False} if CASES[name].options else {}
    generation = generator.generate(asking(tools=TOOLS, template_options=options))
    events = events_of(generation)
    calls = [event for event in events if isinstance(event, ToolCallStart | ToolCallDelta)]
    assert [type(event) for event in calls] == [ToolCallStart, ToolCallDelta]
    assert calls[1] == ToolCallDelta(0, ARGUMENTS)
    assert generation.finish == "tool_calls"
    assert shown(events) == ""


def test_thoughts_that_the_prompt_has_opened_are_told_apart_and_counted() -> None:
    generator, engine = speaking("qwen3.5", "Let me see.\n</think>\n\nYes.")
    generation = generator.generate(asking())
    assert events_of(generation) == [ReasoningDelta("Let me see."), TextDelta("Yes.")]
    # The newline and the closing tag are thoughts, too.
    assert generation.usage.reasoning_tokens == len("Let me see.\n") + 1
    assert engine.prompts[0].endswith("<think>\n")


def test_control_tokens_that_nobody_looks_for_are_left_out() -> None:
    tokenizer = MarkupTokenizer(("<think>", "<|odd|>"))
    engine = ScriptedEngine(script=["a<|odd|>b<think>c"], tokenizer=tokenizer)
    generator = Generator(engine, Dialect(ChatTemplate(CHATML)))
    assert events_of(generator.generate(asking())) == [TextDelta("abc")]


def test_a_stop_text_ends_the_answer_and_is_left_out() -> None:
    generator, _ = chatml("one, two, three", "no stop in here")
    generation = generator.generate(asking(stop=("two", "zzz")))
    assert events_of(generation) == [TextDelta("one, ")]
    assert (generation.finish, generation.stop_text) == ("stop", "two")
    generation = generator.generate(asking(stop=("heres",)))
    assert events_of(generation) == [TextDelta("no stop in here")]
    assert (generation.finish, generation.stop_text) == ("stop", None)


def test_a_stop_text_in_the_thoughts_ends_nothing() -> None:
    generator, _ = speaking("qwen3.5", "a STOP b</think>c STOP d")
    events = events_of(generator.generate(asking(stop=("STOP",))))
    assert events == [ReasoningDelta("a STOP b"), TextDelta("c ")]


def test_max_tokens_and_a_full_context_cut_it_and_what_was_held_back_is_told() -> None:
    generator, _ = speaking("qwen3", "x <tool_c and more")
    generation = generator.generate(asking(tools=TOOLS, max_tokens=8))
    assert (events_of(generation), generation.finish) == ([TextDelta("x <tool_")], "length")
    generator, engine = chatml("y" * 200, context_tokens=100)
    generation = generator.generate(asking())
    events_of(generation)
    assert (generation.finish, engine.position) == ("context", 100)


def test_a_prompt_without_room_is_refused_before_anything_is_computed() -> None:
    generator, engine = chatml("", context_tokens=100)
    with pytest.raises(ContextFullError, match=r"and the context 100.*--context"):
        generator.generate(asking((Message("user", "x" * 100),)))
    assert engine.n_decodes == 0


def test_a_failed_read_ends_the_answer_and_not_the_next_one() -> None:
    generator, engine = chatml("lost", "found", "found")
    error = ExpertReadError("m", 0, 1, None)

    def fail(engine: object, tokens: list[int]) -> None:
        if len(tokens) == 1:
            raise error

    engine.before_decode = fail
    generation = generator.generate(asking())
    with pytest.raises(ExpertReadError):
        events_of(generation)
    assert generation.finish == "error"
    engine.before_decode = lambda engine, tokens: None
    assert events_of(generator.generate(asking())) == [TextDelta("found")]


def test_another_thread_cancels_an_answer_in_the_middle_of_a_decode() -> None:
    pause = threading.Event()
    # Its prompt is never read to its end.
    generator, engine = chatml("the second's answer", pause=pause)
    generation = generator.generate(asking())
    said: list[Event] = []
    worker = threading.Thread(target=lambda: said.extend(events_of(generation)))
    worker.start()
    assert engine.decoding.wait(20)
    generation.cancel()
    worker.join(20)
    assert not worker.is_alive()
    assert (said, generation.finish) == ([], "cancelled")
    pause.set()
    following = generator.generate(asking())
    first = next(following)
    # The old answer has no power over the new one.
    generation.cancel()
    assert not engine._interrupted.is_set()
    assert shown([first.event, *(piece.event for piece in following)]) == "the second's answer"
    assert following.finish == "stop"


def test_closing_and_asking_again_end_an_answer() -> None:
    generator, _ = chatml("one", "two", "three")
    never = generator.generate(asking())
    second = generator.generate(asking())
    next(second)
    third = generator.generate(asking())
    assert (never.finish, second.finish) == ("cancelled", "cancelled")
    assert events_of(third) == [TextDelta("two")]
    assert list(second) == []


def test_logprobs_belong_to_the_text_that_their_tokens_made() -> None:
    generator, engine = speaking("qwen3.5", "ab</think>c\u00e9 <d")
    pieces = list(generator.generate(asking(tools=TOOLS, logprobs=2)))
    by_kind: dict[type, list[bytes]] = {ReasoningDelta: [], TextDelta: []}
    for event, logprobs in pieces:
        assert isinstance(event, ReasoningDelta | TextDelta)
        data = [each.chosen.data for each in logprobs]
        by_kind[type(event)].extend(data)
        for each in logprobs:
            assert each.chosen == each.top[0]
            assert len(each.top) == 2
            assert -0.01 < each.chosen.logprob < 0
            assert each.top[1].logprob < -10
    assert b"".join(by_kind[ReasoningDelta]) == b"ab"
    assert b"".join(by_kind[TextDelta]) == "cé <d".encode()
    assert all(not p.logprobs for p in _again(generator, engine, "ab</think>c"))


def _again(generator: Generator, engine: ScriptedEngine, answer: str) -> Sequence[Any]:
    engine.script = lambda prompt: answer
    return list(generator.generate(asking()))


def test_a_prompt_of_text_or_tokens_needs_no_template() -> None:
    generator, engine = chatml("b", "c")
    text = GenerationRequest(prompt="a <think>", sampling=GREEDY, max_tokens=5)
    assert events_of(generator.generate(text)) == [TextDelta("b")]
    assert engine.prompts[0] == "a <think>"
    tokens = GenerationRequest(prompt=(104, 105, 33), sampling=GREEDY)
    assert events_of(generator.generate(tokens)) == [TextDelta("c")]
    assert engine.prompts[1] == "hi!"
    with pytest.raises(ChatError, match="token 5000 is not one of the model's 260"):
        generator.generate(replace(tokens, prompt=(5000,)))
    with pytest.raises(ChatError, match="empty"):
        generator.generate(replace(tokens, prompt=()))


def test_a_saved_context_is_taken_up_again(tmp_path: Path) -> None:
    generator, _ = chatml("One.")
    events_of(generator.generate(asking()))
    tokens = generator.save(tmp_path / "state")
    other, engine = chatml("Two.", "Three.")
    other.restore(tmp_path / "state", tokens)
    talk = (*HELLO, Message("assistant", "One."), Message("user", "More?"))
    generation = other.generate(asking(talk))
    assert events_of(generation) == [TextDelta("Two.")]
    assert generation.usage.cached_tokens == len(tokens)
    with pytest.raises(EngineError, match="another conversation"):
        other.restore(tmp_path / "state", tokens[:-1])
    assert engine.position == 0
    assert events_of(other.generate(asking())) == [TextDelta("Three.")]


def test_tools_are_told_of_in_words_where_the_template_has_none() -> None:
    generator, engine = chatml(HERMES, "It rains.")
    generation = generator.generate(asking(tools=TOOLS))
    events = events_of(generation)
    assert events[1] == ToolCallDelta(0, ARGUMENTS)
    assert '"name": "get_weather"' in engine.prompts[0]
    assert isinstance(events[0], ToolCallStart)
    assert events[0].id.startswith("call_")
    assert not any(isinstance(event, Notice) for event in events)


def test_no_tools_are_offered_where_none_may_be_called() -> None:
    generator, engine = chatml(HERMES)
    generation = generator.generate(asking(tools=TOOLS, tool_choice="none"))
    assert events_of(generation) == [TextDelta(HERMES)]
    assert generation.finish == "stop"
    assert "get_weather" not in engine.prompts[0]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"stop": ("",)}, "stop text"),
        ({"tool_choice": "required"}, "brings no tools"),
        ({"tool_choice": "nothing_like_it", "tools": TOOLS}, "nothing_like_it.*get_weather"),
        ({"tools": TOOLS + TOOLS}, "same name"),
        ({"prompt": "x"}, "messages or a prompt"),
    ],
)
def test_what_is_wrong_with_a_request_is_said_before_a_model_is_asked(
    options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(SettingsError, match=reason):
        asking(**options)


def test_the_dialect_of_a_checkpoint_knows_the_think_token_of_its_vocabulary() -> None:
    engine = ScriptedEngine(tokenizer=MarkupTokenizer(("<think>", "</think>")))
    assert dialect_for(engine)[0].can_think
    assert not dialect_for(ScriptedEngine())[0].can_think
