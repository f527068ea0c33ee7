"""The tensors of the demo model, one at a time, from the dense model and the recipe.

Shapes as numpy has them (the reverse of GGUF's): D hidden, F neurons, S shared neurons, E experts,
I neurons of an expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFReader, dequantize, quantize

from localmoe.demo.recipe import LAYERS, Array, FloatArray, Recipe

ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
F32, Q8_0 = GGMLQuantizationType.F32, GGMLQuantizationType.Q8_0
_Q8_0_ROW = (32, 34)  # values and bytes of one block


@dataclass(frozen=True)
class Planned:
    """A tensor that is computed when it is written."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    """F32 or Q8_0."""
    make: Callable[[], Array]
    """Returns float32 of `shape`, or bytes already in Q8_0."""

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        count = int(np.prod(self.shape))
        if self.kind == F32:
            return count * 4
        return count // _Q8_0_ROW[0] * _Q8_0_ROW[1]

    def data(self) -> Array:
        """Compute the tensor as it goes into the file."""
        made: Array = np.ascontiguousarray(self.make())
        if self.kind == F32 or made.dtype == np.uint8:
            return made
        packed: Array = quantize(made, Q8_0)
        return packed


class DenseModel:
    """The dense GGUF, read through gguf-py: the file is known by its hash, so it is trusted."""

    def __init__(self, path: Path) -> None:
        """Read the header; tensors stay in the file until they are asked for."""
        self.reader = GGUFReader(path)
        self._tensors = {tensor.name: tensor for tensor in self.reader.tensors}

    def weight(self, name: str) -> FloatArray:
        """Return a tensor as float32."""
        tensor = self._tensors[f"{name}.weight"]
        return np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """Return a tensor's bytes."""
        return np.asarray(self._tensors[f"{name}.weight"].data)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape as numpy has it."""
        return tuple(int(n) for n in reversed(self._tensors[f"{name}.weight"].shape))


def plan_tensors(dense: DenseModel, recipe: Recipe) -> Iterator[Planned]:
    """Yield every tensor of the demo model in file order."""
    # already Q8_0 in the source: copied, not quantized a second time
    embedding = "token_embd"
    yield Planned(
        f"{embedding}.weight", dense.shape(embedding), Q8_0, partial(dense.raw, embedding)
    )
    yield _norm(dense, recipe, "output_norm", 0, "")
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        yield _norm(dense, recipe, "attn_norm", layer, block)
        for name in ATTENTION:
            make = partial(_corrected, dense, recipe, name, layer)
            yield Planned(f"{block}{name}.weight", dense.shape(block + name), Q8_0, make)
        yield _norm(dense, recipe, "ffn_norm", layer, block)
        yield from _split(dense, recipe, layer) if recipe.is_split(layer) else _whole(dense, layer)


def _norm(dense: DenseModel, recipe: Recipe, name: str, layer: int, block: str) -> Planned:
    def make() -> FloatArray:
        tuned = recipe.norm(name, layer)
        return dense.weight(block + name) if tuned is None else tuned

    return Planned(f"{block}{name}.weight", dense.shape(block + name), F32, make)


def _corrected(dense: DenseModel, recipe: Recipe, name: str, layer: int) -> FloatArray:
    weight = dense.weight(f"blk.{layer}.{name}")
    correction = recipe.correction(name, layer)
    return weight if correction is None else weight + correction


def _whole(dense: DenseModel, layer: int) -> Iterator[Planned]:
    for name in ("ffn_gate", "ffn_up", "ffn_down"):
        full = f"blk.{layer}.{name}"
        yield Planned(f"{full}.weight", dense.shape(full), Q8_0, partial(dense.weight, full))


def regrouped(dense: DenseModel, recipe: Recipe, layer: int, name: str) -> FloatArray:
    """Return ffn_gate or ffn_up [F, D], or ffn_down [D, F], in new order and corrected."""
    weight, order = dense.weight(f"blk.{layer}.{name}"), recipe.order(layer)
    weight = weight[:, order] if name == "ffn_down" else weight[order]
    correction = recipe.correction(name, layer)
    if correction is not None:
        weight += correction
    scale = recipe.neuron_scale(layer)
    if name == "ffn_up" and scale is not None:
        weight *= scale[:, None]
    return weight


def _split(dense: DenseModel, recipe: Recipe, layer: int) -> Iterator[Planned]:
    block, shared, experts, width = f"blk.{layer}.", recipe.shared, recipe.experts, recipe.width
    hidden = dense.shape(f"{block}ffn_down")[0]
    router = partial(recipe.router, layer)
    yield Planned(f"{block}ffn_gate_inp.weight", (experts, hidden), F32, router)
    for name in ("ffn_gate", "ffn_up", "ffn_down"):
        is_down = name == "ffn_down"
        shapes = {
            "shexp": (hidden, shared) if is_down else (shared, hidden),
            "exps": (experts, hidden, width) if is_down else (experts, width, hidden),
        }
        for part, shape in shapes.items():
            make = partial(_expert_part, dense, recipe, layer, name, part)
            yield Planned(f"{block}{name}_{part}.weight", shape, Q8_0, make)


def _expert_part(dense: DenseModel, recipe: Recipe, layer: int, name: str, part: str) -> FloatArray:
    """Return the shared expert's (`shexp`) or the routed experts' (`exps`) share of a matrix."""
    whole = regrouped(dense, recipe, layer, name)
    by_neuron = whole.T if name == "ffn_down" else whole  # [F, D]
    if part == "shexp":
        mine = by_neuron[: recipe.shared]
    else:
        mine = by_neuron[recipe.shared :].reshape(recipe.experts, recipe.width, -1)
    return mine.swapaxes(-1, -2) if name == "ffn_down" else mine
