"""The golden rule of the split: all experts together are the dense layer, to rounding."""

from __future__ import annotations

import numpy as np
import pytest

from localmoe.demo.recipe import Recipe, load_recipe
from localmoe.demo.source import find_source
from localmoe.demo.tensors import DenseModel, Planned, plan_tensors

LAYER, TOKENS, HIDDEN, NEURONS = 14, 8, 576, 1536


@pytest.fixture(scope="module")
def dense() -> DenseModel:
    return DenseModel(find_source())


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe()


def _parts(dense: DenseModel, recipe: Recipe) -> dict[str, Planned]:
    block = f"blk.{LAYER}."
    return {
        tensor.name.removeprefix(block).removesuffix(".weight"): tensor
        for tensor in plan_tensors(dense, recipe)
        if tensor.name.startswith(block)
    }


def _gated(x: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """One gated feed-forward block. [T, D] -> [T, D]."""
    g = x @ gate.T
    return (g / (1 + np.exp(-g)) * (x @ up.T)) @ down.T


def _mixture(x: np.ndarray, parts: dict[str, Planned], recipe: Recipe) -> np.ndarray:
    """What llama.cpp's `deepseek` graph computes from the tensors, before quantization."""
    made = {name: tensor.make().astype(np.float64) for name, tensor in parts.items()}
    logits = x @ made["ffn_gate_inp"].T
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights *= recipe.experts / weights.sum(-1, keepdims=True)
    worst = np.argsort(weights, -1)[:, : recipe.experts - recipe.used]
    np.put_along_axis(weights, worst, 0.0, -1)
    out = _gated(x, *(made[f"ffn_{n}_shexp"] for n in ("gate", "up", "down")))
    for e in range(recipe.experts):
        matrices = (made[f"ffn_{n}_exps"][e] for n in ("gate", "up", "down"))
        out += weights[:, e, None] * _gated(x, *matrices)
    return out


def _inputs() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((TOKENS, HIDDEN)) * 0.1


def _dense_output(dense: DenseModel, x: np.ndarray) -> np.ndarray:
    names = (f"blk.{LAYER}.ffn_{n}" for n in ("gate", "up", "down"))
    return _gated(x, *(dense.weight(name).astype(np.float64) for name in names))


def test_all_experts_give_the_dense_layer(dense: DenseModel, recipe: Recipe) -> None:
    bare = recipe.untuned(used=recipe.experts)
    # the same split with equal weights: exact
    flat = {**bare.arrays, "router": np.zeros_like(bare.arrays["router"])}
    bare = type(bare)(bare.shared, bare.experts, bare.used, bare.gain, bare.sha256, flat)
    x = _inputs()
    mixed, wanted = _mixture(x, _parts(dense, bare), bare), _dense_output(dense, x)
    np.testing.assert_allclose(mixed, wanted, atol=1e-9 * np.abs(wanted).max())


def test_router_weights_are_nearly_equal(dense: DenseModel, recipe: Recipe) -> None:
    bare = recipe.untuned(used=recipe.experts)
    x = _inputs()
    mixed, wanted = _mixture(x, _parts(dense, bare), bare), _dense_output(dense, x)
    error = np.linalg.norm(mixed - wanted) / np.linalg.norm(wanted)
    assert 0 < error < 0.05


def test_fewer_experts_lose_something(dense: DenseModel, recipe: Recipe) -> None:
    x = _inputs()
    wanted = _dense_output(dense, x)
    few = recipe.untuned(used=6)
    error = np.linalg.norm(_mixture(x, _parts(dense, few), few) - wanted) / np.linalg.norm(wanted)
    assert 0.02 < error < 0.9


def test_planned_sizes_are_true(dense: DenseModel, recipe: Recipe) -> None:
    for tensor in _parts(dense, recipe).values():
        assert tensor.make().shape == tensor.shape
        assert tensor.data().nbytes == tensor.nbytes


def test_embedding_is_copied_bit_for_bit(dense: DenseModel, recipe: Recipe) -> None:
    first = next(iter(plan_tensors(dense, recipe)))
    assert first.name == "token_embd.weight"
    assert first.data().tobytes() == dense.raw("token_embd").tobytes()
    assert first.data().nbytes == first.nbytes


def test_layer_zero_stays_dense(dense: DenseModel, recipe: Recipe) -> None:
    names = {t.name for t in plan_tensors(dense, recipe) if t.name.startswith("blk.0.")}
    assert "blk.0.ffn_gate.weight" in names
    assert not any("exps" in name for name in names)
