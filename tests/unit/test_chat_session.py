"""The conversation: what the engine sees, what the user sees, and what happens when it breaks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_engine import IM_START, ByteTokenizer, FakeEngine
from localmoe.chat.dialect import Dialect
from localmoe.chat.events import Event, ReasoningDelta, merged
from localmoe.chat.family import family_of
from localmoe.chat.messages import Message
from localmoe.chat.sampling import Sampler, SamplingOptions
from localmoe.chat.session import AnswerOptions, ChatSession
from localmoe.chat.templates import CHATML, ChatTemplate, PlainText
from localmoe.errors import ChatError, ContextFullError, ExpertReadError
from scripted import MarkupTokenizer, ScriptedEngine

GREEDY = SamplingOptions(temperature=0)


def session_of(
    engine: FakeEngine, *, system: str | None = None, max_tokens: int | None = None
) -> ChatSession:
    template = ChatTemplate(CHATML, bos_text="<s>")
    sampler = Sampler(GREEDY)
    return ChatSession(
        engine, template, sampler=sampler, system=system, options=AnswerOptions(max_tokens)
    )


def say(session: ChatSession, text: str) -> str:
    return "".join(session.ask(text))


def failing_after(n: int, error: BaseException) -> Callable[[FakeEngine, list[int]], None]:
    """Return a hook that raises once, before decode number n."""
    left = [n]

    def hook(engine: FakeEngine, tokens: list[int]) -> None:
        left[0] -= 1
        if left[0] == -1:
            raise error

    return hook


def test_an_answer_comes_in_pieces_and_ends_by_itself() -> None:
    session = session_of(FakeEngine())
    answer = session.ask("abc")
    assert list(answer) == ["a", "b", "c"]
    assert (answer.text, answer.finish) == ("abc", "end")
    assert session.history == (Message("user", "abc"), Message("assistant", "abc"))


def test_the_second_turn_decodes_only_what_is_new() -> None:
    engine = FakeEngine()
    session = session_of(engine, system="be brief")
    say(session, "first")
    held = engine.position
    answer = session.ask("second")
    list(answer)
    new = engine.tokenizer.encode(
        "<|im_end|>\n<|im_start|>user\nsecond<|im_end|>\n<|im_start|>assistant\n"
    )
    assert answer.usage.prefill.tokens == len(new)
    assert engine.position == held + len(new) + len("second")


def test_a_character_of_several_tokens_is_one_piece() -> None:
    session = session_of(FakeEngine())
    assert list(session.ask("né€🙂")) == ["n", "é", "€", "🙂"]


def test_bytes_that_are_no_text_become_one_mark() -> None:
    assert say(session_of(FakeEngine(reply=lambda prompt: b"a\xffb\xf0\x9f")), "x") == "a�b�"


def test_a_character_cut_by_the_token_limit_is_left_out() -> None:
    session = session_of(FakeEngine(), max_tokens=3)
    answer = session.ask("a€")
    assert ("".join(answer), answer.finish, answer.usage.answer_tokens) == ("a", "length", 3)
    assert say(session_of(FakeEngine(), max_tokens=4), "a€") == "a€"


def test_closing_an_answer_keeps_what_was_said() -> None:
    engine = FakeEngine()
    session = session_of(engine)
    answer = session.ask("abcdef")
    assert [next(answer), next(answer)] == ["a", "b"]
    answer.close()
    assert answer.finish == "cancelled"
    assert session.history[-1] == Message("assistant", "ab")
    assert say(session, "next") == "next"
    assert "assistant\nab<|im_end|>" in engine.text


def test_cancel_ends_the_answer_before_its_next_token() -> None:
    session = session_of(FakeEngine())
    answer = session.ask("abcdef")
    pieces = [next(answer)]
    session.cancel()
    pieces.extend(answer)
    assert (pieces, answer.finish) == (["a"], "cancelled")
    assert say(session, "next") == "next"


def test_cancel_in_the_prompt_forgets_the_question() -> None:
    engine = FakeEngine(prefill_chunk_tokens=8)
    session = session_of(engine)
    say(session, "hello")
    before = session.history

    def progress(stage: str, done: int, total: int) -> None:
        if done >= 16:
            session.cancel()

    answer = session.ask("x" * 100, progress)
    assert list(answer) == []
    assert (answer.finish, answer.usage.prefill.tokens) == ("cancelled", 16)
    assert session.history == before
    assert say(session, "next") == "next"


def test_asking_again_closes_the_answer_before() -> None:
    session = session_of(FakeEngine())
    first = session.ask("abcdef")
    next(first)
    assert say(session, "next") == "next"
    assert (first.finish, session.history[1]) == ("cancelled", Message("assistant", "a"))


def test_an_interrupt_inside_the_engine_leaves_the_session_usable() -> None:
    engine = FakeEngine(before_decode=failing_after(3, KeyboardInterrupt()))
    session = session_of(engine)
    with pytest.raises(KeyboardInterrupt):
        say(session, "abcdef")
    assert session.history[-1] == Message("assistant", "abc")
    assert say(session, "next") == "next"


def test_a_failed_read_ends_that_answer_and_not_the_next() -> None:
    error = ExpertReadError("m.gguf", 5, 10, None)
    session = session_of(FakeEngine(before_decode=failing_after(2, error)))
    answer = session.ask("abcdef")
    with pytest.raises(ExpertReadError):
        list(answer)
    assert (answer.text, answer.finish) == ("ab", "error")
    assert session.history[-1] == Message("assistant", "ab")
    assert say(session, "next") == "next"


def test_a_failed_read_in_the_prompt_forgets_the_question() -> None:
    error = ExpertReadError("m.gguf", 5, 10, None)
    engine = FakeEngine(before_decode=failing_after(0, error))
    session = session_of(engine)
    with pytest.raises(ExpertReadError):
        say(session, "lost")
    assert session.history == ()
    assert say(session, "next") == "next"
    assert "lost" not in engine.text


def test_the_end_of_a_prompt_is_marked_where_nothing_else_can_be_gone_back_to() -> None:
    engine = FakeEngine(rewind_step=0, prefill_chunk_tokens=16)
    session = session_of(engine)
    say(session, "a question that takes more than a chunk")
    (marked,) = engine.marks
    engine.decoded.clear()
    session._turns[-1] = Message("assistant", "shorter")
    assert say(session, "next") == "next"
    assert sum(engine.decoded) == engine.position - marked
    assert 0 < marked < engine.marks[-1]


@pytest.mark.parametrize("rewind_step", [0, 7])
def test_an_engine_that_cannot_rewind_everywhere_decodes_more(rewind_step: int) -> None:
    engine = FakeEngine(rewind_step=rewind_step)
    session = session_of(engine)
    say(session, "a long first question")
    session.clear()
    assert say(session, "a long other question") == "a long other question"


def test_a_full_context_ends_the_answer() -> None:
    engine = FakeEngine(context_tokens=100, reply=lambda prompt: b"x" * 500)
    answer = session_of(engine).ask("go on")
    text = "".join(answer)
    assert answer.finish == "context"
    # The last token said needs no place: nothing follows it.
    assert engine.position == 100
    assert len(text) == 101 - answer.usage.prefill.tokens


def test_the_oldest_turns_are_forgotten_when_the_context_is_full_and_the_system_stays() -> None:
    engine = FakeEngine(context_tokens=300)
    session = session_of(engine, system="SYSTEM")
    dropped = 0
    for i in range(8):
        answer = session.ask(f"question {i}")
        assert "".join(answer) == f"question {i}"
        dropped += answer.dropped_turns
    assert 0 < dropped < 7
    assert engine.text.startswith("<|im_start|>system\nSYSTEM<|im_end|>")
    assert "question 0" not in engine.text
    assert "question 6" in engine.text
    assert session.history[0].role == "system"
    assert session.history[1].role == "user"


def test_a_prompt_longer_than_the_context_is_refused_with_numbers_and_costs_no_history() -> None:
    session = session_of(FakeEngine(context_tokens=200))
    say(session, "first")
    before = session.history
    with pytest.raises(ContextFullError, match=r"419 tokens and the context 200.*--context"):
        say(session, "x" * 400)
    assert session.history == before
    assert say(session, "next") == "next"


def test_a_system_message_counts_from_the_next_question() -> None:
    engine = FakeEngine()
    session = session_of(engine)
    say(session, "one")
    session.system = "be brief"
    say(session, "two")
    assert engine.text.startswith("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\none")


def test_clear_forgets_the_conversation() -> None:
    engine = FakeEngine()
    session = session_of(engine, system="s")
    say(session, "one")
    session.clear()
    say(session, "two")
    assert "one" not in engine.text
    assert len(session.history) == 3


def test_usage_counts_each_phase() -> None:
    engine = FakeEngine()
    session = session_of(engine)
    answer = session.ask("abcd")
    list(answer)
    prompt = len(engine.tokenizer.encode(CHATML_PROMPT.format("abcd")))
    usage = answer.usage
    assert (usage.prefill.tokens, usage.decode.tokens, usage.answer_tokens) == (prompt, 4, 4)
    assert usage.prefill.stats.tokens == prompt
    assert usage.decode.stats.read_bytes == 400
    assert usage.decode.stats.hit_rate == 0.75
    assert usage.prefill.seconds > 0
    assert usage.decode.tokens_per_second == 4 / usage.decode.seconds
    list(session.ask("ef"))
    assert session.usage.answer_tokens == 6
    assert session.usage.decode.stats.read_bytes == 600


CHATML_PROMPT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def test_prefill_asks_for_logits_of_the_last_token_only_and_in_chunks() -> None:
    engine = FakeEngine(prefill_chunk_tokens=10)
    heard: list[tuple[str, int, int]] = []
    list(session_of(engine).ask("", lambda *args: heard.append(args)))
    assert len(engine.tokenizer.encode(CHATML_PROMPT.format(""))) == 19
    assert engine.decoded == [10, 9]
    assert heard == [("prompt", 0, 19), ("prompt", 10, 19), ("prompt", 19, 19)]


@pytest.mark.parametrize(
    ("template", "add_bos", "n_bos"),
    [(CHATML, True, 1), (CHATML, False, 0), ("<s>" + CHATML, True, 1), ("<s>" + CHATML, False, 1)],
)
def test_bos_is_never_doubled(template: str, add_bos: bool, n_bos: int) -> None:
    engine = FakeEngine(tokenizer=ByteTokenizer(add_bos=add_bos))
    session = ChatSession(engine, ChatTemplate(template), sampler=Sampler(GREEDY))
    assert say(session, "hi") == "hi"
    assert engine.text.count("<s>") == n_bos
    assert engine.tokens[n_bos] == IM_START


def test_plain_text_is_sent_as_it_is() -> None:
    engine = FakeEngine(tokenizer=ByteTokenizer(add_bos=True), reply=lambda prompt: b"?" * 60)
    session = ChatSession(engine, PlainText(), sampler=Sampler(GREEDY), options=AnswerOptions(2))
    say(session, "Once upon")
    assert engine.text.startswith("<s>Once upon?")


def test_an_empty_prompt_is_refused() -> None:
    session = ChatSession(FakeEngine(), PlainText())
    with pytest.raises(ChatError, match="empty"):
        say(session, "")


def test_an_engine_that_holds_something_already_starts_afresh() -> None:
    engine = FakeEngine(tokens=[1, 2, 3])
    assert say(session_of(engine), "hi") == "hi"
    assert engine.text.startswith("<|im_start|>user")


def test_thoughts_are_heard_of_and_kept_as_the_family_wants() -> None:
    source = "{% for m in messages %}{{ m.role }}:{{ m.content }}|{% endfor %}<think>"
    for architecture, kept in (("afmoe", True), ("deepseek2", False)):
        tokenizer = MarkupTokenizer(("<think>", "</think>"))
        engine = ScriptedEngine(script=["Hm.</think>Yes.", "No."], tokenizer=tokenizer)
        dialect = Dialect(ChatTemplate(source), family_of(source, architecture))
        session = ChatSession(engine, dialect, sampler=Sampler(GREEDY))
        heard: list[Event] = []
        answer = session.ask("one", listener=heard.append)
        assert "".join(answer) == "Yes."
        assert merged(heard) == [ReasoningDelta("Hm.")]
        assert (answer.reasoning, answer.usage.reasoning_tokens) == ("Hm.", 4)
        assert session.history[-1] == Message("assistant", "Yes.", "Hm.")
        list(session.ask("two"))
        assert ("Hm." in engine.prompts[1]) == kept


def test_an_answer_cancelled_in_its_thoughts_is_forgotten_with_its_question() -> None:
    source = "{% for m in messages %}{{ m.role }}:{{ m.content }}|{% endfor %}<think>"
    engine = ScriptedEngine(script=["Hm, hm, hm.</think>Yes.", "</think>No."])
    dialect = Dialect(ChatTemplate(source), family_of(source, "afmoe"))
    session = ChatSession(engine, dialect, sampler=Sampler(GREEDY))
    answer = session.ask("one", listener=lambda event: session.cancel())
    assert list(answer) == []
    assert (answer.reasoning, answer.finish) == ("H", "cancelled")
    assert session.history == ()
    assert say(session, "two") == "No."


ACTIONS = st.one_of(
    st.tuples(st.just("say"), st.text(max_size=30)),
    st.tuples(st.just("cut"), st.text(min_size=3, max_size=30)),
    st.tuples(st.just("fail"), st.text(max_size=30)),
    st.tuples(st.just("system"), st.text(max_size=8)),
    st.tuples(st.just("clear"), st.just("")),
)


@settings(max_examples=150, deadline=None)
@given(
    actions=st.lists(ACTIONS, max_size=12),
    rewind_step=st.sampled_from([0, 1, 5]),
    chunk=st.sampled_from([1, 7, 64]),
    context=st.sampled_from([200, 4096]),
)
def test_the_engine_always_holds_the_rendered_history(
    actions: list[tuple[str, str]], rewind_step: int, chunk: int, context: int
) -> None:
    engine = FakeEngine(rewind_step=rewind_step, prefill_chunk_tokens=chunk, context_tokens=context)
    session = session_of(engine)
    template = ChatTemplate(CHATML)
    for action, text in actions:
        if action == "clear":
            session.clear()
        elif action == "system":
            session.system = text
        elif action == "fail":
            engine.before_decode = failing_after(len(text) // 3, ExpertReadError("m", 0, 1, None))
            with contextlib.suppress(ExpertReadError):
                say(session, text)
            engine.before_decode = lambda engine, tokens: None
        else:
            answer = session.ask(text)
            first = next(answer, None)
            # The prompt as the engine has it when the answer starts, its last token included.
            if first is not None and len(first.encode()) == 1:
                prompt = (*session.history,)
                assert engine.tokens == engine.tokenizer.encode(template.render(prompt))
            if action == "cut":
                answer.close()
            else:
                assert (first or "") + "".join(answer) == text
                assert template.render(session.history).startswith(engine.text)
