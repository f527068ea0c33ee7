"""States of conversations: kept, found again, bounded, and never trusted."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from localmoe.chat.dialect import dialect_for
from localmoe.chat.generator import Generator
from localmoe.chat.messages import Message, Role
from localmoe.chat.request import GenerationRequest
from localmoe.errors import EngineError, SettingsError
from localmoe.server.session_store import SessionStore
from scripted import ScriptedEngine
from server_tools import Serve, until
from serving import HERMES, Served

FIRST = "The first question, which is long enough to be worth a file of its own."
OTHER = "Another conversation altogether, of somebody else, about something else."


def engine() -> ScriptedEngine:
    return ScriptedEngine(script=lambda prompt: "An answer.", chat_template=HERMES)


def generator_of(engine: ScriptedEngine) -> Generator:
    return Generator(engine, dialect_for(engine)[0])


def ask(served: Served, *texts: str, session: str | None = None, key: str = "") -> int:
    """Ask in a conversation of questions and answers; return the cached tokens."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    headers = {"X-Session-Id": session} if session else {}
    headers |= {"x-api-key": key} if key else {}
    body = {"model": "tiny", "messages": messages}
    response = httpx.post(f"{served.api}/chat/completions", json=body, headers=headers)
    until(lambda: not served.service.worker.is_busy)
    cached: int = response.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return cached


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_what_a_prompt_shares_with_the_one_before_is_not_read_again(serve: Serve) -> None:
    served = serve(engine())
    assert ask(served, FIRST) == 0
    assert ask(served, FIRST, "An answer.", "And more?") > len(FIRST)
    assert ask(served, OTHER) < 40
    assert ask(served, FIRST) < 40


def test_a_conversation_is_found_again_after_another_one_and_after_a_restart(
    serve: Serve, tmp_path: Path
) -> None:
    with_sessions = serve(engine(), sessions=tmp_path)
    ask(with_sessions, FIRST)
    ask(with_sessions, OTHER)
    known = ask(with_sessions, FIRST, "An answer.", "And more?")
    assert known > len(FIRST) + len("An answer.")
    assert len(files(tmp_path)) == 4, "the longer state has replaced the shorter one"
    with_sessions.server.end()
    assert with_sessions.service.worker.join(30)
    with_sessions.service.close()
    again = serve(engine(), sessions=tmp_path)
    texts = (FIRST, "An answer.", "And more?", "An answer.", "And still more?")
    assert ask(again, *texts) > known
    assert ask(again, OTHER, "An answer.", "Yes?") > len(OTHER)


def test_the_folder_is_private(serve: Serve, tmp_path: Path) -> None:
    folder = tmp_path / "made" / "for it"
    ask(serve(engine(), sessions=folder), FIRST)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
        assert FIRST.encode() not in path.read_bytes()


def test_two_servers_do_not_share_a_folder(serve: Serve, tmp_path: Path) -> None:
    serve(engine(), sessions=tmp_path)
    with pytest.raises(SettingsError, match="in use by another server"):
        serve(engine(), sessions=tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="cannot be used"):
        serve(engine(), sessions=tmp_path / "file")


def test_states_are_bounded_in_number(serve: Serve, tmp_path: Path) -> None:
    served = serve(engine(), sessions=tmp_path, max_sessions=2)
    for number in range(4):
        ask(served, f"{number}: {FIRST}")
    assert len(files(tmp_path)) == 4
    assert ask(served, f"3: {FIRST}", "An answer.", "So?") > len(FIRST)
    assert ask(served, f"0: {FIRST}", "An answer.", "So?") < 40


def test_states_are_bounded_in_bytes(serve: Serve, tmp_path: Path) -> None:
    served = serve(engine(), sessions=tmp_path, max_session_bytes=4000)
    for number in range(6):
        ask(served, f"{number}: {FIRST}")
    assert 0 < sum(path.stat().st_size for path in tmp_path.iterdir()) <= 4000
    served.server.end()
    tiny = serve(engine(), sessions=tmp_path / "tiny", max_session_bytes=10)
    ask(tiny, FIRST)
    assert files(tmp_path / "tiny") == []


def test_a_named_conversation_has_one_state(serve: Serve, tmp_path: Path) -> None:
    served = serve(engine(), sessions=tmp_path)
    ask(served, FIRST, session="mine")
    ask(served, OTHER, session="mine")
    assert len(files(tmp_path)) == 2
    ask(served, FIRST, session="yours")
    assert len(files(tmp_path)) == 4
    refused = httpx.post(
        f"{served.api}/messages",
        json={"model": "tiny", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]},
        headers={"X-Session-Id": "x" * 600},
    )
    assert refused.status_code == 400


def test_a_name_belongs_to_the_key_that_gave_it(serve: Serve, tmp_path: Path) -> None:
    keys = ("the-first-of-two-keys", "the-second-of-two-keys")
    served = serve(engine(), sessions=tmp_path, api_keys=keys)
    for key, text in zip(keys, (FIRST, OTHER), strict=True):
        ask(served, text, session="mine", key=key)
    assert len(files(tmp_path)) == 4
    ask(served, "Something else altogether.", session="mine", key=keys[0])
    assert len(files(tmp_path)) == 4


def damage_head(path: Path) -> None:
    head, _, packed = path.read_bytes().partition(b"\n")
    path.write_bytes(json.dumps({**json.loads(head), "sha256": "0"}).encode() + b"\n" + packed)


DAMAGE: dict[str, Any] = {
    "tokens cut off": lambda t, k: t.write_bytes(t.read_bytes()[:-4]),
    "tokens empty": lambda t, k: t.write_bytes(b""),
    "tokens of another sort": lambda t, k: t.write_bytes(b"[]\n1234"),
    "head changed": lambda t, k: damage_head(t),
    "state damaged": lambda t, k: k.write_text("nonsense"),
    "state of other tokens": lambda t, k: k.write_text("[1, 2, 3]"),
    "state missing": lambda t, k: k.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_states_cost_a_prompt_and_nothing_else(
    serve: Serve, tmp_path: Path, damage: Any
) -> None:
    served = serve(engine(), sessions=tmp_path)
    ask(served, FIRST)
    served.server.end()
    assert served.service.worker.join(30)
    served.service.close()
    (tokens,) = tmp_path.glob("*.tokens")
    damage(tokens, tokens.with_suffix(".kv"))
    again = serve(engine(), sessions=tmp_path)
    assert ask(again, FIRST, "An answer.", "And more?") == 0
    assert ask(again, FIRST, "An answer.", "And more?", "An answer.", "So?") > len(FIRST)


def test_what_a_killed_server_left_half_written_is_swept_up(tmp_path: Path) -> None:
    names = (".0a-b.kv.77", ".0a-b.tokens.12ab", "0a-b.kv", ".0a-b.kv.77.whole")
    for name in names:
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("somebody's own")
    SessionStore(tmp_path, "tiny", max_count=2, max_nbytes=99).close()
    assert files(tmp_path) == ["notes.txt"]


class KilledError(BaseException):
    """Stands for a kill: nothing on the disk changes any more, whatever is tried."""


def kill_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let so many changes to the disk happen and none after them; return those that were made."""
    made: list[str] = []

    def wrap(name: str, change: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **named: Any) -> Any:
            if len(made) >= steps:
                raise KilledError
            made.append(name)
            return change(*arguments, **named)

        return step

    for name in ("replace", "unlink", "fsync", "chmod", "fchmod", "utime"):
        monkeypatch.setattr(os, name, wrap(name, getattr(os, name)))
    monkeypatch.setattr(ScriptedEngine, "save", wrap("save", ScriptedEngine.save))
    return made


def say(generator: Generator, *texts: str) -> list[int]:
    """Answer the last of these turns; return what a next request would find of them."""
    roles: tuple[Role, Role] = ("user", "assistant")
    messages = [Message(roles[i % 2], text) for i, text in enumerate(texts)]
    for _ in generator.generate(GenerationRequest(tuple(messages))):
        continue
    return list(generator.tokens)


def test_a_kill_between_any_two_changes_to_the_disk_loses_no_earlier_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, done = 0, False
    while not done:
        folder = tmp_path / str(steps)
        generator = generator_of(engine())
        store = SessionStore(folder, "tiny", max_count=2, max_nbytes=1 << 20)
        first = say(generator, FIRST)
        store.save(generator, None)
        second = say(generator, FIRST, "An answer.", "And more?")
        with monkeypatch.context() as patch:
            made = kill_after(steps, patch)
            try:
                store.save(generator, None)
                done = True
            except KilledError:
                pass
        store.close()
        again, fresh = SessionStore(folder, "tiny", max_count=2, max_nbytes=1 << 20), engine()
        restarted = generator_of(fresh)
        again.bring(restarted, [*second, 0], None)
        again.close()
        assert fresh.tokens in (first, second), made
        assert fresh.tokens == second or not done
        assert len(files(folder)) in (2, 4), "what was half written is swept up"
        steps += 1
    assert made.count("replace") == 1
    assert {"save", "fsync", "unlink"} <= set(made)


def test_a_state_that_cannot_be_saved_is_told_and_the_answer_is_given(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: ScriptedEngine, path: Path) -> None:
        raise EngineError("the disk is full")

    monkeypatch.setattr(ScriptedEngine, "save", fail)
    served = serve(engine(), sessions=tmp_path)
    assert ask(served, FIRST) == 0
    assert served.service.ledger.unsaved == 1
    assert files(tmp_path) == []


def test_models_that_cannot_rewind_take_a_state_only_whole(serve: Serve, tmp_path: Path) -> None:
    def recurrent() -> ScriptedEngine:
        return ScriptedEngine(script=lambda p: "An answer.", chat_template=HERMES, rewind_step=0)

    served = serve(recurrent(), sessions=tmp_path)
    ask(served, FIRST)
    ask(served, OTHER)
    assert ask(served, FIRST, "An answer.", "And more?") > len(FIRST)
    ask(served, OTHER)
    assert ask(served, FIRST, "Changed.", "And more?") == 0
