"""The MLX engine keeps the contract of every engine: positions, states, errors, memory."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx.utils import tree_flatten

import zoo_mlx
from localmoe.backends.base import Engine, WatchedEngine
from localmoe.backends.mlx.engine import MlxEngine
from localmoe.backends.mlx.load import load
from localmoe.cache.direct_file import DirectFile
from localmoe.errors import (
    BudgetError,
    ContextFullError,
    EngineError,
    ExpertReadError,
    InterruptedDecodeError,
    ModelError,
    ModelNotFoundError,
    SettingsError,
    UnsupportedModelError,
)
from localmoe.settings import Settings
from zoo_mlx.types import VOCABULARY

GROWING, WINDOWED, RECURRENT, CHUNKED = "qwen3_moe", "afmoe", "qwen3_next", "llama4"
KINDS = (GROWING, WINDOWED, RECURRENT, CHUNKED)
TOKENS = [(17 * place + 5) % 250 for place in range(48)]
Folders = Callable[..., Path]
Load = Callable[..., MlxEngine]


@pytest.fixture
def engines(folders: Folders) -> Iterator[Load]:
    """Return a function from a type and settings to an engine that is closed after the test."""
    opened: list[MlxEngine] = []

    def make(name: str = GROWING, **settings: Any) -> MlxEngine:
        values = {"slots": 9, "context_tokens": 64, **settings}
        opened.append(load(folders(name), Settings(**values)))
        return opened[-1]

    yield make
    for engine in opened:
        engine.close()


def test_positions_and_logits(engines: Load) -> None:
    engine = engines()
    assert isinstance(engine, Engine)
    assert isinstance(engine, WatchedEngine)
    assert (engine.position, engine.architecture) == (0, GROWING)
    assert engine.decode(TOKENS[:5]).shape == (1, VOCABULARY)
    assert engine.decode(TOKENS[5:9], "all").shape == (4, VOCABULARY)
    assert engine.decode(TOKENS[9:11], "none").shape == (0, VOCABULARY)
    assert (engine.position, engine.stats().tokens) == (11, 11)
    assert engine.stats().read_bytes > 0
    assert engine.load_seconds > 0
    assert engine.tokenizer.is_end(2)
    assert engine.chat_template


@pytest.mark.parametrize("name", KINDS)
def test_going_back_leaves_no_trace(engines: Load, name: str) -> None:
    whole, engine = engines(name), engines(name)
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
    assert engine.can_rewind == (name == GROWING)
    assert engine.truncate(100) == back


def test_a_window_that_is_not_full_yet_can_be_cut(engines: Load) -> None:
    whole, engine = engines(WINDOWED), engines(WINDOWED)
    whole.decode(TOKENS[:6])
    expected = whole.decode(TOKENS[6:8], "all")
    engine.decode(TOKENS[:12])
    assert engine.truncate(6) == 6
    assert np.array_equal(engine.decode(TOKENS[6:8], "all"), expected)


@pytest.mark.parametrize("name", [*KINDS, "deepseek_v32"])
def test_a_saved_state_goes_on_where_it_was(engines: Load, name: str, tmp_path: Path) -> None:
    engine, other = engines(name), engines(name)
    engine.decode(TOKENS[:40])
    engine.save(tmp_path / "state")
    expected = engine.decode(TOKENS[40:43], "all")
    other.decode(TOKENS[3:9])
    other.restore(tmp_path / "state")
    assert other.position == 40
    assert np.array_equal(other.decode(TOKENS[40:43], "all"), expected)
    assert os.listdir(tmp_path) == ["state"]


def test_an_empty_context_is_a_state_too(engines: Load, tmp_path: Path) -> None:
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
    engines: Load, tmp_path: Path, damage: Callable[[bytes], bytes], reason: str
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


def test_a_state_belongs_to_one_model_and_must_fit(engines: Load, tmp_path: Path) -> None:
    engine = engines()
    engine.decode(TOKENS[:30])
    engine.save(tmp_path / "state")
    with pytest.raises(EngineError, match="another model"):
        engines(WINDOWED).restore(tmp_path / "state")
    with pytest.raises(EngineError, match="30 tokens and the context has 16"):
        engines(context_tokens=16).restore(tmp_path / "state")


def test_what_cannot_be_decoded_is_refused(engines: Load) -> None:
    engine = engines(context_tokens=16)
    with pytest.raises(EngineError, match="at least one token"):
        engine.decode([])
    with pytest.raises(EngineError, match="0 to 271"):
        engine.decode([272])
    with pytest.raises(ContextFullError, match="16 are free"):
        engine.decode(TOKENS[:17])
    engine.decode(TOKENS[:16])
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.decode(TOKENS[:1])


@pytest.mark.parametrize("name", [GROWING, RECURRENT])
def test_an_interrupted_decode_is_as_if_it_had_not_been(engines: Load, name: str) -> None:
    engine, other = engines(name), engines(name)
    engine.decode(TOKENS[:8])
    engine.mark()
    seen: list[int] = []

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


@pytest.mark.parametrize("slots", [9, 3])
def test_a_read_that_fails_is_told_and_the_next_request_works(
    engines: Load, monkeypatch: pytest.MonkeyPatch, slots: int
) -> None:
    engine, other = engines(slots=slots), engines(slots=slots)
    engine.decode(TOKENS[:8])
    with monkeypatch.context() as patch:
        patch.setattr(DirectFile, "_fill", lambda *_: False)
        with pytest.raises(ExpertReadError, match="safetensors"):
            engine.decode(TOKENS[8:30])
    assert engine.position == 8
    other.decode(TOKENS[:8])
    assert np.array_equal(engine.decode(TOKENS[8:30]), other.decode(TOKENS[8:30]))


def test_another_thread_may_decode_and_close(engines: Load) -> None:
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


def test_a_budget_too_small_names_one_that_works(folders: Folders) -> None:
    path = folders(GROWING)
    with pytest.raises(BudgetError, match=r"Use --memory (\d+)MiB") as failed:
        load(path, Settings(memory_bytes=64 << 20, context_tokens=64))
    mib = int(str(failed.value).split("--memory ")[1].split("MiB")[0])
    with load(path, Settings(memory_bytes=(mib + 64) << 20, context_tokens=64)) as engine:
        assert engine.plan.total_bytes <= (mib + 64) << 20
        assert engine.decode(TOKENS[:3]).shape == (1, VOCABULARY)
        model = engine._open().model
        resident = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
        assert engine.plan.resident_bytes == resident


def test_settings_of_other_engines_are_refused(folders: Folders) -> None:
    for values in ({"kv_type": "q8_0"}, {"experts_used": 1}, {"mirrors": ("x",)}):
        with pytest.raises(SettingsError, match="GGUF"):
            load(folders(GROWING), Settings(**values))  # type: ignore[arg-type]


def edited(folder: Path, tmp_path: Path, **values: Any) -> Path:
    copied = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, **values}))
    return copied


@pytest.mark.parametrize(
    ("values", "error", "reason"),
    [
        ({"model_type": "no_such_model"}, UnsupportedModelError, "no_such_model"),
        ({"num_experts": 9}, ModelError, "shape"),
        ({"moe_intermediate_size": 64}, ModelError, "shape"),
        ({"vocab_size": 640}, ModelError, "shape"),
        ({"num_hidden_layers": 9}, ModelError, "[Mm]issing"),
        ({"hidden_size": "wide"}, UnsupportedModelError, "cannot use"),
        ({"model_file": "code.py"}, UnsupportedModelError, "trust_remote_code"),
        ({"model_type": "qwen3"}, UnsupportedModelError, "cannot use"),
    ],
)
def test_a_configuration_that_lies_is_refused(
    folders: Folders,
    tmp_path: Path,
    values: dict[str, Any],
    error: type[ModelError],
    reason: str,
) -> None:
    copied = edited(folders(GROWING), tmp_path, **values)
    (copied / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(error, match=reason):
        load(copied, Settings(slots=9, context_tokens=64))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, ModelNotFoundError),
        ("{", UnsupportedModelError),
        ("[]", UnsupportedModelError),
        ("[" * 100_000, UnsupportedModelError),
    ],
)
def test_a_configuration_that_is_none(
    folders: Folders, tmp_path: Path, text: str | None, error: type[ModelError]
) -> None:
    copied = edited(folders(GROWING), tmp_path)
    (copied / "config.json").unlink()
    if text is not None:
        (copied / "config.json").write_text(text)
    with pytest.raises(error, match=r"config\.json|cannot use"):
        load(copied, Settings(slots=9, context_tokens=64))


def test_files_that_mlx_lm_would_not_read_are_refused(folders: Folders, tmp_path: Path) -> None:
    copied = edited(folders(GROWING), tmp_path)
    (copied / "model.safetensors").rename(copied / "weights.safetensors")
    (copied / "model.safetensors.index.json").unlink()
    with pytest.raises(UnsupportedModelError, match=r"model\*\.safetensors"):
        load(copied, Settings(slots=9, context_tokens=64))


def test_experts_are_never_parameters(engines: Load) -> None:
    parameters = tree_flatten(engines()._open().model.parameters())
    assert not [name for name, _ in parameters if "switch_mlp" in name]


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_no_array_is_longer_than_a_buffer_may_be(folders: Folders, name: str) -> None:
    path, found = folders(name), []
    for most in (None, 8 * 64 * 32 // 2):  # bytes of all experts' largest part, of one layer
        with load(path, Settings(slots=12, context_tokens=64), buffer_nbytes=most) as engine:
            assert len(engine.slot_pool.classes) == (3 if most else 1)
            assert not most or all(
                limit * max(each.part_nbytes) <= most
                for limit, each in zip(
                    engine.slot_pool.limits, engine.slot_pool.classes, strict=True
                )
            )
            found.append(engine.decode(TOKENS[:20], "all"))
    assert np.array_equal(*found)


def test_used_experts_are_remembered(folders: Folders, tmp_path: Path) -> None:
    settings = Settings(slots=9, context_tokens=64, profile_dir=tmp_path)
    with load(folders(GROWING), settings) as engine:
        engine.decode(TOKENS[:6])
    assert len(list(tmp_path.iterdir())) == 1


def test_what_must_stay_float32_on_this_machine_is_said(folders: Folders, tmp_path: Path) -> None:
    folder = zoo_mlx.write(tmp_path, GROWING, "bfloat16")
    with pytest.raises(UnsupportedModelError, match="bfloat16: quantize"):
        load(folder, Settings(slots=9, context_tokens=64))
