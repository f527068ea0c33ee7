"""Which stored tensors become which arrays of experts: mlx-lm's own `sanitize` is asked.

It gets numbers in place of experts: arrays of one element for each, whose value says which tensor
and which expert of it that is. What it renames and stacks can be read off what comes back;
whatever it computes is no such number any more. Nothing of the checkpoint is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from localmoe.backends.mlx.switches import ExpertArray, Switch
from localmoe.errors import ModelFormatError, UnsupportedModelError
from localmoe.weights.catalog import ExpertPart, Extent, Part, ScatteredPart
from localmoe.weights.safetensors import StoredTensor

_EXPERTS = re.compile(r"expert|switch|moe|\.mlp\.\d+\.")
_SHARED = re.compile(r"shared?_expert")
_ONE_EXPERT = re.compile(r"\.(experts|mlp)\.\d+\.")
_DTYPES = {
    "F32": ("float32",),
    "F16": ("float16",),
    "BF16": ("bfloat16",),
    "U32": ("uint32",),
    "I32": ("int32", "uint32"),
    "U8": ("uint8",),
    "I8": ("int8", "uint8"),
    "F8_E4M3": ("uint8",),
    "F8_E8M0": ("uint8",),
}
"""How MLX names what is stored so."""


@dataclass(frozen=True)
class _Mark:
    """The numbers from `first` on stand for the experts of a tensor, in their order."""

    tensor: StoredTensor
    first: int
    is_stacked: bool

    def extent(self, number: int) -> Extent:
        """Return where the bytes of the expert with this number lie."""
        path, offset, nbytes = self.tensor.extent
        if not self.is_stacked:
            return self.tensor.extent
        share = nbytes // self.tensor.shape[0]
        return Extent(path, offset + (number - self.first) * share, share)


class Marks:
    """What `sanitize` makes of numbers. Raises UnsupportedModelError."""

    def __init__(
        self,
        model: nn.Module,
        tensors: Mapping[str, StoredTensor],
        weights: Mapping[str, mx.array],
    ) -> None:
        """`tensors` and `weights` (none of them evaluated) are the same, by the same names."""
        self._by_number: list[_Mark] = []
        given = dict(weights)
        for name, tensor in tensors.items():
            is_routed = _EXPERTS.search(name) and not _SHARED.search(name)
            if is_routed and name in given and tensor.shape:
                given[name] = self._mark(name, tensor)
        sanitize: Any = getattr(model, "sanitize", None)
        try:
            self._found: Mapping[str, mx.array] = sanitize(given) if sanitize else given
        except Exception as error:
            raise UnsupportedModelError(
                "mlx-lm does not take the experts of this checkpoint as they are stored, it "
                f"computes them from what is stored ({str(error).strip()[:200]}). Convert it "
                "with mlx_lm.convert, or use --engine torch"
            ) from error

    def part(self, switch: Switch, array: ExpertArray) -> Part:
        """Return where an array's bytes lie for each expert. Raises ModelError."""
        name = f"{switch.path}.{array.name}"
        found = self._found.get(name)
        if found is None:
            raise UnsupportedModelError(
                f"nothing that is stored becomes {name} of mlx-lm's model as it is: convert the "
                "checkpoint with mlx_lm.convert, or use --engine torch"
            )
        numbers = self._numbers(name, found, switch.n_experts)
        marks = [self._by_number[number] for number in numbers]
        for mark in marks:
            self._check(mark, array)
        pieces = [mark.extent(number) for mark, number in zip(marks, numbers, strict=True)]
        first = marks[0]
        if first.is_stacked and numbers == list(range(first.first, first.first + len(numbers))):
            extent = Extent(pieces[0].path, pieces[0].offset, len(pieces) * array.expert_nbytes)
            return ExpertPart(first.tensor.name, extent, array.expert_nbytes)
        return ScatteredPart(name, tuple((piece,) for piece in pieces), array.expert_nbytes)

    def _mark(self, name: str, tensor: StoredTensor) -> mx.array:
        is_stacked = not _ONE_EXPERT.search(name)
        count = tensor.shape[0] if is_stacked else 1
        mark = _Mark(tensor, len(self._by_number), is_stacked)
        self._by_number += [mark] * count
        numbers = mx.arange(mark.first, mark.first + count, dtype=mx.int32)
        return numbers.reshape(count, *(1 for _ in tensor.shape[1:]))

    def _numbers(self, name: str, found: mx.array, n_experts: int) -> list[int]:
        numbers = np.array(found) if found.size == n_experts else np.zeros(0, np.int32)
        known = len(numbers) > 0 and numbers.dtype.kind in "iu" and int(numbers.min()) >= 0
        if not known or int(numbers.max()) >= len(self._by_number):
            raise UnsupportedModelError(
                f"mlx-lm computes {name} from what is stored, or takes it apart: its experts "
                "cannot be read as they are. Convert the checkpoint with mlx_lm.convert, or use "
                "--engine torch"
            )
        return [int(number) for number in numbers.ravel()]

    @staticmethod
    def _check(mark: _Mark, array: ExpertArray) -> None:
        """Raise unless what is stored is what the array holds."""
        shape = mark.tensor.shape[1:] if mark.is_stacked else mark.tensor.shape
        dtype = str(array.dtype).rpartition(".")[2]
        if dtype not in _DTYPES.get(mark.tensor.dtype, ()) or (
            math.prod(shape) != math.prod(array.shape)
        ):
            raise ModelFormatError(
                f"{mark.tensor.name} is {mark.tensor.dtype} {list(shape)} for each expert, and "
                f"config.json makes {array.name} {dtype} {list(array.shape)} of it: they do not "
                "belong together"
            )
