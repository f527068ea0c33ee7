"""The chat: keys, commands, and going on after an error. No model, no terminal."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from fake_engine import FakeEngine
from localmoe.backends.base import Stats
from localmoe.chat.sampling import Sampler, SamplingOptions
from localmoe.chat.session import ChatSession
from localmoe.chat.templates import CHATML, ChatTemplate
from localmoe.chat.usage import Phase, Usage
from localmoe.cli.chat_commands import NAMES, ChatCommands
from localmoe.cli.chat_ui import Chat
from localmoe.cli.interrupts import BrokenOffError, Interrupts
from localmoe.cli.line_editor import LineEditor
from localmoe.cli.stats_file import stats_of, status_line
from localmoe.errors import ExpertReadError

ALT_ENTER, CTRL_C, CTRL_D = "\x1b\r", "\x03", "\x04"
PASTE = "\x1b[200~{}\x1b[201~"


@pytest.fixture
def keyboard() -> Iterator[PipeInput]:
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        yield pipe


def session_of(engine: FakeEngine) -> ChatSession:
    sampler = Sampler(SamplingOptions(temperature=0))
    return ChatSession(engine, ChatTemplate(CHATML), sampler=sampler)


def chat(keyboard: PipeInput, engine: FakeEngine, typed: str) -> ChatSession:
    session = session_of(engine)
    keyboard.send_text(typed)
    Chat(session, engine, LineEditor(keyboard, DummyOutput())).run()
    return session


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("hello\r", "hello"),
        (f"one{ALT_ENTER}two\r", "one\ntwo"),
        ("one\\\rtwo\r", "one\ntwo"),
        (PASTE.format("a\nb\\\nc") + "\r", "a\nb\\\nc"),
        ("/stats\r", "/stats"),
    ],
)
def test_keys(keyboard: PipeInput, typed: str, read: str) -> None:
    keyboard.send_text(typed)
    assert LineEditor(keyboard, DummyOutput()).read() == read


def test_a_chat_answers_each_line_until_ctrl_d(
    keyboard: PipeInput, capsys: pytest.CaptureFixture[str]
) -> None:
    session = chat(keyboard, FakeEngine(), f"hello\r\r  \rworld\r{CTRL_D}")
    assert [message.content for message in session.history] == ["hello", "hello", "world", "world"]
    out = capsys.readouterr().out
    assert "/help" in out
    assert "hello\n5 tokens, " in out


def test_ctrl_c_at_the_prompt_clears_the_line_and_on_an_empty_one_says_how_to_leave(
    keyboard: PipeInput, capsys: pytest.CaptureFixture[str]
) -> None:
    session = chat(keyboard, FakeEngine(), f"draft{CTRL_C}hello\r/exit\r")
    assert session.history[0].content == "hello"
    assert "leaves the chat" not in capsys.readouterr().out
    chat(keyboard, FakeEngine(), f"{CTRL_C}/exit\r")
    assert "leaves the chat" in capsys.readouterr().out


def test_ctrl_c_in_an_answer_stops_the_answer_and_not_the_chat(
    keyboard: PipeInput, capsys: pytest.CaptureFixture[str]
) -> None:
    def press(engine: FakeEngine, tokens: list[int]) -> None:
        if engine.text.endswith("abc"):
            os.kill(os.getpid(), signal.SIGINT)

    engine = FakeEngine(before_decode=press)
    session = chat(keyboard, engine, "abcdef\rnext\r/exit\r")
    assert [message.content for message in session.history] == ["abcdef", "abcd", "next", "next"]
    assert "stopped" in capsys.readouterr().out


def test_ctrl_c_three_times_leaves_the_chat(keyboard: PipeInput) -> None:
    def press(engine: FakeEngine, tokens: list[int]) -> None:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(BrokenOffError):
        chat(keyboard, FakeEngine(before_decode=press), "hello\r")


def test_a_late_ctrl_c_does_not_leave_the_chat(
    keyboard: PipeInput, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> str:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr("localmoe.cli.chat_ui.summary", interrupted)
    session = chat(keyboard, FakeEngine(), "hello\rnext\r/exit\r")
    assert session.history[-1].content == "next"


def test_an_error_ends_the_answer_and_not_the_chat(
    keyboard: PipeInput, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(engine: FakeEngine, tokens: list[int]) -> None:
        is_answering = engine.text.endswith("assistant\n") and len(tokens) == 1
        if is_answering and "next" not in engine.text:
            raise ExpertReadError("m.gguf", 5, 10, None)

    session = chat(keyboard, FakeEngine(before_decode=fail), "broken\rnext\r/exit\r")
    assert session.history[-1].content == "next"
    captured = capsys.readouterr()
    assert [message.content for message in session.history] == ["broken", "b", "next", "next"]
    assert captured.err.startswith("localmoe: could not read 10 bytes at offset 5 of m.gguf")
    assert captured.err.count("\n") == 1


def test_commands_are_carried_out_and_not_said(
    keyboard: PipeInput, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = "one\r/clear\r/system be brief\r/stats\r/nope\r/usr/bin is a folder\r/quit\r"
    session = chat(keyboard, FakeEngine(), typed)
    contents = [message.content for message in session.history]
    assert contents == ["be brief", "/usr/bin is a folder", "/usr/bin is a folder"]
    out = capsys.readouterr().out
    assert "System message: be brief" in out
    assert "no command /nope" in out
    assert "5 of 20 in memory" in out


def test_the_system_message_is_shown_set_and_removed() -> None:
    engine = FakeEngine()
    session = session_of(engine)
    commands = ChatCommands(session, engine)

    def said(line: str) -> str:
        outcome = commands.run(line)
        assert outcome is not None
        return outcome.text

    assert said("/system") == "There is no system message."
    assert said("/system one\ntwo") == "System message: one\ntwo"
    assert said("/system") == "System message: one\ntwo"
    assert said("/system -") == "There is no system message."
    assert session.system is None


def test_every_command_that_is_completed_exists_and_is_in_the_help() -> None:
    engine = FakeEngine()
    commands = ChatCommands(session_of(engine), engine)
    help_text = commands.run("/help")
    assert help_text is not None
    for name in NAMES:
        outcome = commands.run(name)
        assert outcome is not None
        assert "no command" not in outcome.text
        assert name in help_text.text


def test_stats_show_speed_and_hits() -> None:
    engine = FakeEngine()
    session = session_of(engine)
    "".join(session.ask("abcd"))
    outcome = ChatCommands(session, engine).run("/stats")
    assert outcome is not None
    assert "4 tokens" in outcome.text
    assert "75.0 % of requests" in outcome.text
    assert "100 bytes and 1.0 ms of waiting per token" in outcome.text


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.0, False), (0.04, False), (0.06, True), (2.34, True)]
)
def test_the_line_under_an_answer_tells_what_passes_cost(seconds: float, said: bool) -> None:
    stats = Stats(split_layers=3, split_seconds=seconds)
    line = status_line(FakeEngine(), Usage(answer_tokens=1, prefill=Phase(9, 5.0, stats)))
    assert line.startswith("1 token")
    assert (f"{seconds:.1f} s of the prompt spent on passes" in line) == said
    assert "0.0 s" not in line


def test_stats_of_a_dense_model_speak_of_no_hits() -> None:
    engine = FakeEngine(slots=0, experts=0)
    session = session_of(engine)
    "".join(session.ask("abcd"))
    outcome = ChatCommands(session, engine).run("/stats")
    assert outcome is not None
    assert "a dense model" in outcome.text
    assert "requests" not in outcome.text
    assert "waiting" not in outcome.text
    assert "experts" not in status_line(engine, session.usage)
    figures = stats_of(engine, session.usage)
    assert figures["tokens"] == 4
    assert figures["hit_rate"] is figures["stall_seconds_per_token"] is None
    assert figures["prefill"] == {
        "tokens": session.usage.prefill.tokens,
        **dict.fromkeys(("hit_rate", "bytes_read_per_token", "stall_seconds_per_token")),
        "split_layers": 0,
        "split_seconds": 0,
    }


def test_interrupts_ask_twice_and_break_off_at_the_third() -> None:
    asked = []
    before = signal.getsignal(signal.SIGINT)
    with Interrupts(lambda: asked.append(1)) as interrupts:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert (len(asked), interrupts.count) == (2, 2)
        with pytest.raises(BrokenOffError):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
