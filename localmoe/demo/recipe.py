"""The recipe: how the dense model's neurons are regrouped, and small corrections to its weights.

One .npz file. Layers: L = 30; the M = 29 that are split are all but layer 0. E experts, D hidden,
F neurons of a dense layer, r rank of a correction.

    header            JSON: format, shared (neurons), experts, used, gain
    order             uint16 [M, F]     dense number of each new neuron: shared ones first
    router            float16 [M, E, D] multiplied by `gain`
    neuron_scale      float16 [M, F]    optional: factor of each neuron's activity
    NORM              float32 [n, D]    optional: attn_norm, ffn_norm (n = L), output_norm (n = 1)
    MATRIX.{a,b}      int8 [n, r, in], [n, r, out]; MATRIX.{a,b}_scale float16 [n, r]
                      optional: correction sum_r outer(b_r, a_r) of ffn_* (n = M) and attn_* (n = L)
"""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from localmoe.errors import ModelFormatError

RECIPE_PATH: Final = Path(__file__).with_name("recipe.npz")
FORMAT: Final = 1
LAYERS: Final = 30
DENSE_LAYERS: Final = 1
NORMS: Final = ("attn_norm", "ffn_norm", "output_norm")

# what numpy, zip and json raise about content that is not what it should be
_DAMAGE: Final = (
    AttributeError,
    BadZipFile,
    EOFError,
    IndexError,
    KeyError,
    OSError,
    TypeError,
    ValueError,
    zlib.error,
)

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. Layers are numbered as in the model; see the module for the arrays."""

    shared: int
    """Neurons of the shared expert."""
    experts: int
    """Routed experts of a layer."""
    used: int
    """Experts that one token uses."""
    gain: float
    """Factor of the stored routers."""
    sha256: str
    """Of the recipe file."""
    arrays: dict[str, Array]

    @property
    def width(self) -> int:
        """Neurons of one routed expert."""
        neurons: int = self.arrays["order"].shape[1]
        return (neurons - self.shared) // self.experts

    def is_split(self, layer: int) -> bool:
        """Whether this layer has experts."""
        return layer >= DENSE_LAYERS

    def order(self, layer: int) -> npt.NDArray[np.int64]:
        """Return the dense number of each new neuron, int64 [F]."""
        return np.asarray(self.arrays["order"][layer - DENSE_LAYERS], np.int64)

    def router(self, layer: int) -> FloatArray:
        """Return the router, float32 [E, D]."""
        router = self.arrays["router"][layer - DENSE_LAYERS].astype(np.float32)
        return np.asarray(router * np.float32(self.gain), np.float32)

    def neuron_scale(self, layer: int) -> FloatArray | None:
        """Return a factor for each new neuron, float32 [F], if there is one."""
        if "neuron_scale" not in self.arrays:
            return None
        return np.asarray(self.arrays["neuron_scale"][layer - DENSE_LAYERS], np.float32)

    def norm(self, name: str, layer: int) -> FloatArray | None:
        """Return the norm's new weight, float32 [D], if there is one. `name`: one of NORMS."""
        return np.asarray(self.arrays[name][layer], np.float32) if name in self.arrays else None

    def correction(self, name: str, layer: int) -> FloatArray | None:
        """Return what is added to a matrix, float32 [out, in], if anything.

        `name` is ffn_gate, ffn_up, ffn_down (neurons in new order) or attn_q, _k, _v, _output.
        """
        if f"{name}.a" not in self.arrays:
            return None
        row = layer - DENSE_LAYERS if name.startswith("ffn_") else layer
        if row < 0:
            return None
        a, b = (self._factor(f"{name}.{side}", row) for side in "ab")
        return np.asarray(b.T @ a, np.float32)

    def _factor(self, name: str, row: int) -> FloatArray:
        scale = np.asarray(self.arrays[f"{name}_scale"][row], np.float32)
        return np.asarray(self.arrays[name][row], np.float32) * scale[:, None]

    def untuned(self, used: int) -> Recipe:
        """Return the bare split with `used` active experts: exact when that is all of them."""
        bare = {name: self.arrays[name] for name in ("order", "router")}
        return replace(self, used=used, arrays=bare)


def load_recipe(path: Path = RECIPE_PATH) -> Recipe:
    """Read and check a recipe. Raises ModelFormatError."""
    try:
        content = path.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays: dict[str, Array] = {name: file[name] for name in file.files}
        header = json.loads(str(arrays.pop("header")))
        recipe = Recipe(
            shared=int(header["shared"]),
            experts=int(header["experts"]),
            used=int(header["used"]),
            gain=float(header["gain"]),
            sha256=sha256,
            arrays=arrays,
        )
        _check(recipe, int(header["format"]))
    except _DAMAGE as error:
        raise ModelFormatError(
            f"the demo model's recipe {path} cannot be used: {error}. Install localmoe again."
        ) from error
    return recipe


def _check(recipe: Recipe, version: int) -> None:
    """Raise ValueError where the recipe contradicts itself."""
    if version != FORMAT:
        raise ValueError(f"wanted format {FORMAT}, found {version}")
    order = recipe.arrays["order"]
    if order.ndim != 2 or order.shape[0] != LAYERS - DENSE_LAYERS:
        raise ValueError(f"`order` has shape {order.shape}")
    if not (np.sort(order, axis=1) == np.arange(order.shape[1])).all():
        raise ValueError("`order` names a neuron twice")
    if not 1 <= recipe.used <= recipe.experts:
        raise ValueError(f"{recipe.used} of {recipe.experts} experts cannot be used")
    width = recipe.width
    if width < 1 or width * recipe.experts + recipe.shared != order.shape[1]:
        raise ValueError(f"{recipe.experts} equal experts do not fill {order.shape[1]} neurons")
    if recipe.shared % width:
        raise ValueError(f"the shared expert is no multiple of {width} neurons")
    if recipe.arrays["router"].shape[:2] != (len(order), recipe.experts):
        raise ValueError(f"`router` has shape {recipe.arrays['router'].shape}")
