"""The recipe that the package carries, and recipes that must be refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from localmoe.demo.recipe import DENSE_LAYERS, LAYERS, RECIPE_PATH, Recipe, load_recipe
from localmoe.errors import ModelFormatError

SPLIT_LAYERS = range(DENSE_LAYERS, LAYERS)
NEURONS, HIDDEN = 1536, 576
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe()


def test_recipe_fits_into_eight_megabytes() -> None:
    assert RECIPE_PATH.stat().st_size <= 8_000_000


def test_recipe_needs_no_pickle() -> None:
    with np.load(RECIPE_PATH, allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)


def test_every_order_is_a_permutation(recipe: Recipe) -> None:
    for layer in SPLIT_LAYERS:
        assert sorted(recipe.order(layer)) == list(range(NEURONS))


def test_experts_fill_the_layer(recipe: Recipe) -> None:
    assert recipe.shared + recipe.experts * recipe.width == NEURONS
    assert recipe.experts >= 24
    assert recipe.width % 32 == 0, "Q8_0 rows of the down projection come in blocks of 32"


def test_routers_start_nearly_flat(recipe: Recipe) -> None:
    # a logit spreads by about 0.1 times the norm of its row here; far from a decided softmax
    for layer in SPLIT_LAYERS:
        router = recipe.router(layer)
        assert router.shape == (recipe.experts, HIDDEN)
        assert 0 < np.linalg.norm(router, axis=1).mean() < 1


def test_corrections_have_the_shape_of_their_matrix(recipe: Recipe) -> None:
    shapes = {
        "ffn_gate": (NEURONS, HIDDEN),
        "ffn_up": (NEURONS, HIDDEN),
        "ffn_down": (HIDDEN, NEURONS),
        "attn_q": (576, HIDDEN),
        "attn_k": (192, HIDDEN),
        "attn_v": (192, HIDDEN),
        "attn_output": (HIDDEN, 576),
    }
    for name, shape in shapes.items():
        correction = recipe.correction(name, LAYERS - 1)
        assert correction is not None, f"the recipe does not correct {name}"
        assert correction.shape == shape
        assert np.isfinite(correction).all()


def test_untuned_recipe_has_no_corrections(recipe: Recipe) -> None:
    bare = recipe.untuned(used=24)
    assert bare.used == 24
    assert bare.correction("ffn_gate", 1) is None
    assert bare.neuron_scale(1) is None
    assert bare.norm("attn_norm", 0) is None


def _rewrite(path: Path, change: Callable[[Arrays], None]) -> Path:
    with np.load(RECIPE_PATH, allow_pickle=False) as file:
        arrays = {name: file[name] for name in ("header", "order", "router")}
    change(arrays)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def _header(arrays: Arrays, **changes: int) -> None:
    header = json.loads(str(arrays["header"])) | changes
    arrays["header"] = np.array(json.dumps(header))


def _repeat_a_neuron(arrays: Arrays) -> None:
    arrays["order"][3, 0] = arrays["order"][3, 1]


DAMAGES: dict[str, tuple[Callable[[Arrays], None], str]] = {
    "a neuron twice": (_repeat_a_neuron, "twice"),
    "another format": (lambda a: _header(a, format=99), "format 1, found 99"),
    "too many active": (lambda a: _header(a, used=25), "25 of 24"),
    "uneven experts": (lambda a: _header(a, experts=7, used=3), "do not fill"),
    "short order": (lambda a: a.update(order=a["order"][:3]), "order"),
    "short router": (lambda a: a.update(router=a["router"][:, :3]), "router"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_recipe_is_refused(name: str, tmp_path: Path) -> None:
    change, message = DAMAGES[name]
    path = _rewrite(tmp_path / "recipe.npz", change)
    with pytest.raises(ModelFormatError, match=message):
        load_recipe(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"text"])
def test_file_that_is_no_recipe_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "recipe.npz"
    path.write_bytes(content)
    with pytest.raises(ModelFormatError, match="Install localmoe again"):
        load_recipe(path)


def test_missing_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="cannot be used"):
        load_recipe(tmp_path / "none.npz")
