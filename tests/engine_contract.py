"""What every engine for safetensors checkpoints keeps to: positions, states, errors.

A test module subclasses `EngineContract`, and has a fixture `engines`: from a model type and
settings to an engine that is closed after the test.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localmoe.backends.base import Engine, WatchedEngine
from localmoe.backends.checkpoint_engine import CheckpointEngine
from localmoe.cache.direct_file import DirectFile
from localmoe.errors import (
    ContextFullError,
    EngineError,
    ExpertReadError,
    InterruptedDecodeError,
)

GROWING, WINDOWED, RECURRENT = "qwen3_moe", "afmoe", "qwen3_next"
TOKENS = [(17 * place + 5) % 250 for place in range(48)]
Load = Callable[..., CheckpointEngine[Any, Any]]


class EngineContract:
    """Tests that do not depend on who computes."""

    n_vocab: int
    few_slots = 3
    """With which a long prompt takes a layer's experts in groups."""

    def test_positions_and_logits(self, engines: Load) -> None:
        engine = engines()
        assert isinstance(engine, Engine)
        assert isinstance(engine, WatchedEngine)
        assert (engine.position, engine.architecture) == (0, GROWING)
        assert engine.decode(TOKENS[:5]).shape == (1, self.n_vocab)
        assert engine.decode(TOKENS[5:9], "all").shape == (4, self.n_vocab)
        assert engine.decode(TOKENS[9:11], "none").shape == (0, self.n_vocab)
        assert (engine.position, engine.stats().tokens) == (11, 11)
        assert engine.stats().read_bytes > 0
        assert engine.load_seconds > 0
        assert engine.tokenizer.is_end(2)
        assert engine.chat_template

    def test_going_back_leaves_no_trace(self, engines: Load, kind: str) -> None:
        whole, engine = engines(kind), engines(kind)
        whole.decode(TOKENS[:20])
        expected = whole.decode(TOKENS[20:22], "all")
        engine.decode(TOKENS[:20])
        engine.mark()
        engine.decode(TOKENS[30:40])
        assert engine.truncate(20) == 20
        assert np.array_equal(engine.decode(TOKENS[20:22], "all"), expected)
        assert engine.truncate(20) == 20  # the mark is still there
        assert np.array_equal(engine.decode(TOKENS[20:22], "all"), expected)
        back = engine.truncate(3)
        assert back == (3 if engine.can_rewind else 0)
        assert engine.can_rewind == (kind == GROWING)
        assert engine.truncate(100) == back

    def test_a_saved_state_goes_on_where_it_was(
        self, engines: Load, kind: str, tmp_path: Path
    ) -> None:
        saved_state_goes_on(engines, kind, tmp_path)

    def test_an_empty_context_is_a_state_too(self, engines: Load, tmp_path: Path) -> None:
        engine = engines()
        engine.save(tmp_path / "state")
        engine.decode(TOKENS[:4])
        engine.restore(tmp_path / "state")
        assert engine.position == 0
        engine.decode(TOKENS[:4])

    @pytest.mark.parametrize(
        ("damage", "reason"),
        [
            (lambda data: data[:-1], "wrong checksum"),
            (lambda data: data[:20], "too short"),
            (lambda data: bytes([data[0] ^ 1]) + data[1:], "wrong checksum"),
            (lambda data: b"", "too short"),
        ],
    )
    def test_a_damaged_state_changes_nothing(
        self, engines: Load, tmp_path: Path, damage: Callable[[bytes], bytes], reason: str
    ) -> None:
        engine = engines()
        engine.decode(TOKENS[:6])
        path = tmp_path / "state"
        engine.save(path)
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(EngineError, match=reason):
            engine.restore(path)
        assert engine.position == 6
        with pytest.raises(EngineError, match="No such file"):
            engine.restore(tmp_path / "none")

    def test_a_state_belongs_to_one_model_and_must_fit(self, engines: Load, tmp_path: Path) -> None:
        engine = engines()
        engine.decode(TOKENS[:30])
        engine.save(tmp_path / "state")
        with pytest.raises(EngineError, match="another model"):
            engines(WINDOWED).restore(tmp_path / "state")
        with pytest.raises(EngineError, match="30 tokens and the context has 16"):
            engines(context_tokens=16).restore(tmp_path / "state")

    def test_what_cannot_be_decoded_is_refused(self, engines: Load) -> None:
        engine = engines(context_tokens=16)
        with pytest.raises(EngineError, match="at least one token"):
            engine.decode([])
        with pytest.raises(EngineError, match=f"0 to {self.n_vocab - 1}"):
            engine.decode([self.n_vocab])
        with pytest.raises(ContextFullError, match="16 are free"):
            engine.decode(TOKENS[:17])
        engine.decode(TOKENS[:16])
        engine.close()
        engine.close()
        with pytest.raises(EngineError, match="closed"):
            engine.decode(TOKENS[:1])

    @pytest.mark.parametrize("name", [GROWING, RECURRENT])
    def test_an_interrupted_decode_is_as_if_it_had_not_been(self, engines: Load, name: str) -> None:
        engine, other = engines(name), engines(name)
        engine.decode(TOKENS[:8])
        engine.mark()
        seen: list[Any] = []

        def interrupt(_kind: str, keys: Any) -> None:
            seen.extend(keys)
            engine.interrupt()

        engine.watch_experts(interrupt)
        with pytest.raises(InterruptedDecodeError):
            engine.decode(TOKENS[8:12])
        engine.watch_experts(None)
        assert seen
        assert engine.position == 8
        other.decode(TOKENS[:8])
        assert np.array_equal(engine.decode(TOKENS[8:12]), other.decode(TOKENS[8:12]))

    @pytest.mark.parametrize("is_split", [False, True])
    def test_a_read_that_fails_is_told_and_the_next_request_works(
        self, engines: Load, monkeypatch: pytest.MonkeyPatch, is_split: bool
    ) -> None:
        slots = self.few_slots if is_split else 9
        engine, other = engines(slots=slots), engines(slots=slots)
        engine.decode(TOKENS[:8])
        with monkeypatch.context() as patch:
            # What fails must not be in memory already: ask for tokens that were not seen.
            patch.setattr(DirectFile, "_fill", lambda *_: False)
            with pytest.raises(ExpertReadError, match="safetensors"):
                engine.decode(TOKENS[8:30])
        assert engine.position == 8
        other.decode(TOKENS[:8])
        assert np.array_equal(engine.decode(TOKENS[8:30]), other.decode(TOKENS[8:30]))

    def test_another_thread_may_decode_and_close(self, engines: Load) -> None:
        engine, other = engines(), engines()
        found = [engine.decode(TOKENS[:3])]

        def use() -> None:
            found.append(engine.decode(TOKENS[3:6]))
            engine.close()

        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        other.decode(TOKENS[:3])
        assert np.array_equal(found[1], other.decode(TOKENS[3:6]))
        with pytest.raises(EngineError, match="closed"):
            engine.stats()


def saved_state_goes_on(engines: Load, name: str, folder: Path) -> None:
    """Check that an engine that takes another one's state goes on with the same bits."""
    engine, other = engines(name), engines(name)
    engine.decode(TOKENS[:40])
    engine.save(folder / "state")
    expected = engine.decode(TOKENS[40:43], "all")
    other.decode(TOKENS[3:9])
    other.restore(folder / "state")
    assert other.position == 40
    assert np.array_equal(other.decode(TOKENS[40:43], "all"), expected)
    assert os.listdir(folder) == ["state"]
