"""A conversation whose past changes says what a fresh one with the same past says.

G6  for models that can rewind, and for those that read the whole prompt again
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import localmoe
from localmoe.backends.llama.engine import LlamaEngine
from localmoe.chat.answer import Answer
from localmoe.chat.messages import Message
from localmoe.chat.sampling import Sampler, SamplingOptions
from localmoe.chat.session import AnswerOptions, ChatSession
from localmoe.chat.templates import renderer_for
from localmoe.errors import ExpertReadError

ZooModel = Callable[[str], Path]
NAMES = ("qwen3moe", "gpt-oss", "qwen3next", "kimi-linear", "lfm2moe", "deepseek4")
ANSWER_TOKENS = 12


def load(path: Path, slots: int | None) -> LlamaEngine:
    settings = localmoe.Settings(
        threads=1, context_tokens=512, prefill_chunk_tokens=16, slots=slots
    )
    engine = localmoe.load(path, settings)
    assert isinstance(engine, LlamaEngine)
    return engine


def session_on(engine: LlamaEngine, system: str | None = None) -> ChatSession:
    renderer, _ = renderer_for(engine)
    sampler = Sampler(SamplingOptions(temperature=0))
    return ChatSession(
        engine, renderer, sampler=sampler, system=system, options=AnswerOptions(ANSWER_TOKENS)
    )


def finished(answer: Answer) -> Answer:
    for _ in answer:
        pass
    return answer


@pytest.fixture(params=NAMES)
def engine(request: pytest.FixtureRequest, zoo_model: ZooModel) -> Iterator[LlamaEngine]:
    """An engine that streams."""
    path = zoo_model(request.param)
    with load(path, None) as resident:
        slots = resident.plan.experts * 3 // 4
    with load(path, slots) as made:
        assert made.plan.streams
        yield made


def said_by_a_fresh_one(session: ChatSession, engine: LlamaEngine, question: str) -> str:
    """Return what another engine answers to the same past and this question."""
    with load(Path(engine.catalog.paths[0]), None) as other:
        fresh = session_on(other, session.system)
        fresh._turns = [turn for turn in session.history if turn.role != "system"]
        return finished(fresh.ask(question)).text


def prompt_tokens(session: ChatSession) -> int:
    """Return how many tokens the conversation has, without its last answer."""
    return session._n_tokens(list(session._turns[:-1]))


def test_g6_a_changed_past_is_read_again(engine: LlamaEngine) -> None:
    session = session_on(engine)
    finished(session.ask("Hello there"))
    finished(session.ask("and a few more words, please"))
    session.system = "Answer in rhymes."
    wanted = said_by_a_fresh_one(session, engine, "once more")
    heard: list[tuple[str, int, int]] = []
    answer = finished(session.ask("once more", lambda *step: heard.append(step)))
    assert answer.text == wanted
    assert heard[0][0] == "prompt"
    assert heard[-1][1] == heard[-1][2] == answer.usage.prefill.tokens
    if not engine.can_rewind:
        assert answer.usage.prefill.tokens == prompt_tokens(session)


def test_g6_a_thought_that_is_dropped_costs_no_prompt(engine: LlamaEngine) -> None:
    """Templates leave out of the past what a model thought before it answered."""
    session = session_on(engine, system="A long rule that every prompt begins with, again. " * 3)
    finished(session.ask("Hello there"))
    session._turns[-1] = Message("assistant", "short")
    wanted = said_by_a_fresh_one(session, engine, "once more")
    answer = finished(session.ask("once more"))
    assert answer.text == wanted
    read_again = answer.usage.prefill.tokens / prompt_tokens(session)
    assert read_again < 0.5 or engine.catalog.architecture == "deepseek4"


def test_g6_an_answer_that_was_stopped_leaves_no_trace(engine: LlamaEngine) -> None:
    session = session_on(engine)
    finished(session.ask("Hello there"))
    answer = session.ask("tell me something long")
    pieces = iter(answer)
    next(pieces)
    session.cancel()
    assert "".join(pieces) == ""
    assert answer.finish == "cancelled"
    wanted = said_by_a_fresh_one(session, engine, "and now")
    assert finished(session.ask("and now")).text == wanted


@pytest.mark.usefixtures("reads_by_workers")
def test_g6_a_read_error_ends_an_answer_and_not_the_conversation(engine: LlamaEngine) -> None:
    session = session_on(engine)
    finished(session.ask("Hello there"))
    held = engine.position
    break_reads(engine)
    with pytest.raises(ExpertReadError):
        finished(session.ask("a question with many different words to read, none of them cached"))
    if not engine.can_rewind:
        assert engine.position < held, "a mark, or the start"
    assert [turn.content for turn in session.history][0::2] == ["Hello there"]
    for file in engine._source.files.values():
        file._preadv = os.preadv
    wanted = said_by_a_fresh_one(session, engine, "and now")
    assert finished(session.ask("and now")).text == wanted


def break_reads(engine: LlamaEngine) -> None:
    def fail(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        raise OSError(errno.EIO, "input/output error")

    for file in engine._source.files.values():
        file._preadv = fail
