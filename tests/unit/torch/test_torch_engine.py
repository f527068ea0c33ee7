"""The torch engine keeps the contract of every engine: positions, states, errors, memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import zoo_torch
from engine_contract import GROWING, RECURRENT, TOKENS, WINDOWED, EngineContract
from localmoe.backends.torch import footprint
from localmoe.backends.torch.engine import TorchEngine
from localmoe.backends.torch.load import load
from localmoe.backends.torch.weight import Weight
from localmoe.errors import (
    BudgetError,
    ModelError,
    ModelFormatError,
    ModelNotFoundError,
    SettingsError,
    UnsupportedModelError,
)
from localmoe.settings import Settings
from localmoe.weights.catalog import Extent
from localmoe.weights.safetensors import StoredTensor

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


@pytest.fixture(params=[GROWING, WINDOWED, RECURRENT])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestTorchEngine(EngineContract):
    n_vocab = zoo_torch.VOCABULARY
    few_slots = 4


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
