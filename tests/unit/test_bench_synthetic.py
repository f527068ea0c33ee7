"""The generator of benchmark models writes files that the engine takes."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import gguf
import numpy as np
import pytest

import localmoe

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "synthetic.py"


@pytest.fixture(scope="module")
def synthetic() -> Iterator[ModuleType]:
    """Load the script, which is in no package."""
    spec = importlib.util.spec_from_file_location("synthetic", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["synthetic"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["synthetic"]


@pytest.fixture(scope="module")
def model(synthetic: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = synthetic.Shape(
        layers=2, embedding=256, expert_width=256, experts=4, experts_used=2, vocabulary=64
    )
    path: Path = synthetic.synthetic_model(tmp_path_factory.mktemp("synthetic") / "m.gguf", shape)
    return path


def test_weights_have_the_deviation_that_was_asked_for(synthetic: ModuleType) -> None:
    rng = np.random.default_rng(1)
    blocks = np.concatenate(list(synthetic.q4_k_chunks(rng, 256 * 400, 0.02)))
    weights = gguf.dequantize(blocks, gguf.GGMLQuantizationType.Q4_K)
    assert weights.std() == pytest.approx(0.02, rel=0.02)
    assert abs(weights.mean()) < 0.0005
    assert len(np.unique(weights)) == 16


def test_the_model_runs_and_routes_by_token(model: Path) -> None:
    with localmoe.load(model, localmoe.Settings(context_tokens=32, threads=1)) as engine:
        assert engine.plan.experts == 8
        first, second = engine.decode([3, 4], "all")
    assert np.isfinite(first).all()
    assert first.std() > 0.01
    assert not np.array_equal(first, second)


def test_the_same_options_give_the_same_file(
    synthetic: ModuleType, model: Path, tmp_path: Path
) -> None:
    shape = synthetic.Shape(
        layers=2, embedding=256, expert_width=256, experts=4, experts_used=2, vocabulary=64
    )
    again = synthetic.synthetic_model(tmp_path / "again.gguf", shape)
    digests = {hashlib.sha256(p.read_bytes()).digest() for p in (model, again)}
    assert len(digests) == 1
    assert not list(tmp_path.glob("*.part"))
