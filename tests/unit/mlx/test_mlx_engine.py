"""The MLX engine keeps the contract of every engine: positions, states, errors, memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx.utils import tree_flatten

import zoo_mlx
from engine_contract import (
    GROWING,
    RECURRENT,
    TOKENS,
    WINDOWED,
    EngineContract,
    saved_state_goes_on,
)
from localmoe.backends.mlx.engine import MlxEngine
from localmoe.backends.mlx.load import load
from localmoe.errors import (
    BudgetError,
    ModelError,
    ModelNotFoundError,
    SettingsError,
    UnsupportedModelError,
)
from localmoe.settings import Settings
from zoo_mlx.types import VOCABULARY

KINDS = (GROWING, WINDOWED, RECURRENT, "llama4")
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


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestMlxEngine(EngineContract):
    n_vocab = VOCABULARY


def test_a_window_that_is_not_full_yet_can_be_cut(engines: Load) -> None:
    whole, engine = engines(WINDOWED), engines(WINDOWED)
    whole.decode(TOKENS[:6])
    expected = whole.decode(TOKENS[6:8], "all")
    engine.decode(TOKENS[:12])
    assert engine.truncate(6) == 6
    assert np.array_equal(engine.decode(TOKENS[6:8], "all"), expected)


def test_a_state_of_layers_with_several_caches(engines: Load, tmp_path: Path) -> None:
    saved_state_goes_on(engines, "deepseek_v32", tmp_path)


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
