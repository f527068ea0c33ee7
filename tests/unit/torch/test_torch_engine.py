"""The torch engine keeps the contract of every engine: positions, states, errors, memory."""

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
import torch
from safetensors.torch import load_file, save_file

import zoo_torch
from localmoe.backends.torch import footprint
from localmoe.backends.torch.engine import TorchEngine
from localmoe.backends.torch.load import load
from localmoe.backends.torch.weight import Weight
from localmoe.cache.direct_file import DirectFile
from localmoe.errors import (
    BudgetError,
    ContextFullError,
    EngineError,
    ExpertReadError,
    InterruptedDecodeError,
    ModelError,
    ModelFormatError,
    ModelNotFoundError,
    SettingsError,
    UnsupportedModelError,
)
from localmoe.settings import Settings
from localmoe.weights.catalog import Extent
from localmoe.weights.safetensors import StoredTensor

GROWING, WINDOWED, RECURRENT = "qwen3_moe", "afmoe", "qwen3_next"
TOKENS = [(17 * place + 5) % 300 for place in range(48)]
Load = Callable[..., TorchEngine]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return checkpoints with tokenizers, by type."""
    found = {}
    for name in (GROWING, WINDOWED, RECURRENT):
        folder = tmp_path_factory.mktemp(name)
        zoo_torch.write(folder, name)
        zoo_torch.write_tokenizer(folder)
        found[name] = folder
    return found


@pytest.fixture
def engines(folders: dict[str, Path]) -> Iterator[Load]:
    """Return a function from a type and settings to an engine that is closed after the test."""
    opened: list[TorchEngine] = []

    def make(name: str = GROWING, **settings: Any) -> TorchEngine:
        values = {"slots": 9, "context_tokens": 64, "threads": 1, **settings}
        opened.append(load(folders[name], Settings(**values)))
        return opened[-1]

    yield make
    for engine in opened:
        engine.close()


def test_positions_and_logits(engines: Load) -> None:
    engine = engines()
    assert (engine.position, engine.architecture) == (0, GROWING)
    assert engine.decode(TOKENS[:5]).shape == (1, zoo_torch.VOCABULARY)
    assert engine.decode(TOKENS[5:9], "all").shape == (4, zoo_torch.VOCABULARY)
    assert engine.decode(TOKENS[9:11], "none").shape == (0, zoo_torch.VOCABULARY)
    assert (engine.position, engine.stats().tokens) == (11, 11)
    assert engine.stats().read_bytes > 0
    assert engine.load_seconds > 0


@pytest.mark.parametrize("name", [GROWING, WINDOWED, RECURRENT])
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


@pytest.mark.parametrize("name", [GROWING, WINDOWED, RECURRENT])
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
    with pytest.raises(EngineError, match="0 to 319"):
        engine.decode([320])
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


def test_a_read_that_fails_is_told_and_the_next_request_works(
    engines: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, other = engines(), engines()
    engine.decode(TOKENS[:8])
    with monkeypatch.context() as patch:
        # What fails must not be in memory already: ask for tokens that were not seen.
        patch.setattr(DirectFile, "_fill", lambda *_: False)
        with pytest.raises(ExpertReadError, match="safetensors"):
            engine.decode(TOKENS[8:30])
    assert engine.position == 8
    other.decode(TOKENS[:8])
    assert np.array_equal(engine.decode(TOKENS[8:30]), other.decode(TOKENS[8:30]))


def test_an_engine_may_be_closed_in_another_thread(engines: Load) -> None:
    engine = engines()
    engine.decode(TOKENS[:3])
    thread = threading.Thread(target=engine.close)
    thread.start()
    thread.join()
    with pytest.raises(EngineError, match="closed"):
        engine.stats()


def test_a_budget_too_small_names_one_that_works(folders: dict[str, Path]) -> None:
    with pytest.raises(BudgetError, match=r"Use --memory (\d+)MiB") as failed:
        load(folders[GROWING], Settings(memory_bytes=64 << 20, context_tokens=64))
    mib = int(str(failed.value).split("--memory ")[1].split("MiB")[0])
    with load(folders[GROWING], Settings(memory_bytes=(mib + 64) << 20, context_tokens=64)) as e:
        assert e.plan.total_bytes <= (mib + 64) << 20
        assert e.decode(TOKENS[:3]).shape == (1, zoo_torch.VOCABULARY)


def test_settings_of_other_engines_are_refused(folders: dict[str, Path]) -> None:
    for values in ({"kv_type": "q8_0"}, {"experts_used": 1}, {"mirrors": ("x",)}):
        with pytest.raises(SettingsError, match="GGUF"):
            load(folders[GROWING], Settings(**values))  # type: ignore[arg-type]


def edited(folder: Path, tmp_path: Path, **values: Any) -> Path:
    copied = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, **values}))
    return copied


@pytest.mark.parametrize(
    ("values", "error", "reason"),
    [
        ({"model_type": "no_such_model"}, UnsupportedModelError, "no_such_model"),
        ({"num_experts": 9, "num_local_experts": 9}, ModelFormatError, "8 tensors"),
        ({"moe_intermediate_size": 40}, ModelFormatError, "config.json is of another model"),
        ({"vocab_size": 640}, ModelFormatError, "shape"),
        ({"num_hidden_layers": 9}, ModelFormatError, "no tensors for"),
        ({"hidden_size": "wide"}, UnsupportedModelError, "cannot use"),
    ],
)
def test_a_configuration_that_lies_is_refused(
    folders: dict[str, Path],
    tmp_path: Path,
    values: dict[str, Any],
    error: type[ModelError],
    reason: str,
) -> None:
    with pytest.raises(error, match=reason):
        load(edited(folders[GROWING], tmp_path, **values), Settings(slots=9, context_tokens=64))


@pytest.mark.parametrize(
    ("text", "error", "reason"),
    [
        (None, ModelNotFoundError, "cannot read"),
        ("{", ModelFormatError, "not JSON"),
        ("[]", ModelFormatError, "no JSON object"),
        ("[" * 100_000, ModelFormatError, "not JSON"),
    ],
)
def test_a_configuration_that_is_none(
    folders: dict[str, Path], tmp_path: Path, text: str | None, error: type[ModelError], reason: str
) -> None:
    copied = edited(folders[GROWING], tmp_path)
    (copied / "config.json").unlink()
    if text is not None:
        (copied / "config.json").write_text(text)
    with pytest.raises(error, match=reason):
        load(copied, Settings(slots=9, context_tokens=64))


def test_code_of_a_checkpoint_is_not_run(folders: dict[str, Path], tmp_path: Path) -> None:
    copied = edited(
        folders[GROWING],
        tmp_path,
        model_type="hostile",
        auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
    )
    (copied / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UnsupportedModelError):
        load(copied, Settings(slots=9, context_tokens=64))
    assert not (tmp_path / "ran").exists()


def test_what_a_step_needs_grows_with_its_tokens(engines: Load) -> None:
    engine = engines(context_tokens=64)
    assert engine.plan.prefill_chunk_tokens in footprint.CHUNKS
    assert engine.plan.kv_bytes >= 3 * 2 * 64 * 2 * 16 * 2  # layers, k and v, tokens, heads, width
    assert engine.plan.resident_bytes >= sum(
        p.numel() * p.element_size() for p in engine._open().model.parameters()
    )


def test_experts_are_never_parameters(engines: Load) -> None:
    model = engines()._open().model
    names = [name for name, _ in model.named_parameters() if ".experts." in name]
    assert names == []
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())


def test_used_experts_are_remembered(folders: dict[str, Path], tmp_path: Path) -> None:
    settings = Settings(slots=9, context_tokens=64, threads=1, profile_dir=tmp_path)
    with load(folders[GROWING], settings) as engine:
        engine.decode(TOKENS[:6])
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("place", range(9))
def test_a_weight_may_lie_at_any_byte(place: int) -> None:
    values = torch.tensor([1.5, -2.0, 0.25], dtype=torch.bfloat16)
    stored = StoredTensor("w", "BF16", (3,), Extent("f", 0, 6))
    memory = torch.zeros(32, dtype=torch.uint8)
    memory[place : place + 6] = values.view(torch.uint8)
    weight = Weight("w", (stored,), (3,), torch.bfloat16)
    assert torch.equal(weight.decoded(memory[place : place + 6], torch.float32), values.float())


def test_weights_of_nobody_are_not_counted(folders: dict[str, Path], tmp_path: Path) -> None:
    """DeepSeek's checkpoints hold a layer more, for predicting further tokens."""
    shutil.copytree(folders[GROWING], tmp_path, dirs_exist_ok=True)
    settings = Settings(slots=30, context_tokens=64, threads=1)
    with load(tmp_path, settings) as engine:
        expected, resident = engine.decode(TOKENS), engine.plan.resident_bytes
    more = {"model.layers.9.mlp.gate_proj.weight": torch.ones(64, 64, dtype=torch.bfloat16)}
    for file in tmp_path.glob("*.safetensors"):
        save_file({**load_file(file), **more}, file, {"format": "pt"})
        more = {}
    with load(tmp_path, settings) as engine:
        assert engine.plan.resident_bytes == resident
        assert np.array_equal(engine.decode(TOKENS), expected)
