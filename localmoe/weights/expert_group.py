"""The routed experts of one layer of a safetensors checkpoint, put together from their weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from localmoe.errors import ModelFormatError, UnsupportedModelError
from localmoe.weights.catalog import Extent, ScatteredPart
from localmoe.weights.expert_names import ExpertName
from localmoe.weights.safetensors import StoredTensor
from localmoe.weights.stored_weights import FLOATS, StoredWeight

MAX_EXPERTS = 4096
_PARTS = ((("gate", "up", "gate_up"), "gate_up"), (("down",), "down"))
"""What lies in a slot: what leads to the activation, and what leads back; each with its biases."""

_Kind = tuple[str, bool]
"""A matrix, and whether it is its bias."""


class ExpertGroup:
    """Collects weights by their names, then says where each expert lies."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._each: dict[_Kind, dict[int, StoredWeight]] = {}
        self._stacked: dict[_Kind, StoredWeight] = {}

    def add(self, name: ExpertName, weight: StoredWeight) -> None:
        """Take one weight in. Raises UnsupportedModelError where it is not known what it is."""
        if not name.matrix or (not weight.is_encoded and weight.kind not in FLOATS):
            raise UnsupportedModelError(
                f"{weight.name} ({weight.kind}, shape {list(weight.shape)}) belongs to routed "
                "experts, and they are stored in a way that is not known here. Take a BF16, FP8, "
                "compressed-tensors, NVFP4 or MXFP4 checkpoint of the model, or a GGUF of it."
            )
        kind = (name.matrix, name.is_bias)
        if name.expert is None:
            self._stacked[kind] = weight
        else:
            self._each.setdefault(kind, {})[name.expert] = weight

    @property
    def n_experts(self) -> int:
        """How many have a matrix that leads back, as all have. Raises ModelFormatError."""
        down = ("down", False)
        if down in self._stacked:
            count = next(iter(self._stacked[down].shape), 0)
        else:
            count = len(self._each.get(down, ()))
        if not 1 <= count <= MAX_EXPERTS:
            raise ModelFormatError(
                f"{self.name} should have 1 to {MAX_EXPERTS} experts, each with a matrix that "
                f"leads back (down_proj or the like), but has {count}. It is damaged: pull it "
                "again."
            )
        return count

    def parts(self) -> tuple[ScatteredPart, ...]:
        """Return where each expert's parts lie. Raises ModelFormatError."""
        self._check_matrices()
        parts = []
        for matrices, title in _PARTS:
            kinds = self._kinds(matrices)
            rows = [self._expert(kinds, number) for number in range(self.n_experts)]
            like = [(weight.shape, weight.kind, weight.nbytes) for weight in rows[0]]
            for row in rows:
                if [(weight.shape, weight.kind, weight.nbytes) for weight in row] != like:
                    raise ModelFormatError(
                        f"the experts of {self.name} differ in shape or type from one to the next "
                        f"(see {row[0].name}): one size is expected in a layer."
                    )
            pieces = tuple(tuple(_extents(row)) for row in rows)
            nbytes = sum(weight.nbytes for weight in rows[0])
            parts.append(ScatteredPart(f"{self.name}.{title}", pieces, nbytes))
        return tuple(parts)

    def first_expert(self) -> tuple[StoredWeight, ...]:
        """Return what the first expert is made of; the others are alike."""
        return tuple(w for matrices, _ in _PARTS for w in self._expert(self._kinds(matrices), 0))

    def left_over(self, is_used: bool) -> Iterator[StoredWeight]:
        """Yield the weights that no expert has: all of them where the layer is not used.

        Some models route to experts that give back what they are given, and store rests of them.
        """
        if not is_used:
            yield from self._stacked.values()
        for each in self._each.values():
            for number, weight in each.items():
                if not is_used or number >= self.n_experts:
                    yield weight

    def _kinds(self, matrices: Sequence[str]) -> list[_Kind]:
        kinds = [(matrix, is_bias) for matrix in matrices for is_bias in (False, True)]
        return [kind for kind in kinds if kind in self._stacked or kind in self._each]

    def _check_matrices(self) -> None:
        found = {matrix for matrix, is_bias in (*self._stacked, *self._each) if not is_bias}
        if found not in ({"gate", "up", "down"}, {"gate_up", "down"}, {"up", "down"}):
            raise ModelFormatError(
                f"{self.name} has the expert matrices {sorted(found)}; wanted are down and either "
                "gate_up, or up with or without gate. The checkpoint is damaged: pull it again."
            )

    def _expert(self, kinds: Sequence[_Kind], number: int) -> list[StoredWeight]:
        return [
            self._share(self._stacked[kind], number)
            if kind in self._stacked
            else self._own(kind, number)
            for kind in kinds
        ]

    def _own(self, kind: _Kind, number: int) -> StoredWeight:
        found = self._each[kind].get(number)
        if found is None:
            raise ModelFormatError(
                f"{self.name} lacks expert {number} of {self.n_experts} ({kind[0]}). The "
                "checkpoint is not whole: pull it again."
            )
        return found

    def _share(self, weight: StoredWeight, number: int) -> StoredWeight:
        """Return what one expert has of a weight in which all of them are stacked."""
        count = self.n_experts
        tensors = []
        for tensor in weight.tensors:
            n_rows = tensor.shape[0] if tensor.shape else 0
            # A layer may have rows for experts that it has no matrices for.
            if n_rows < count or tensor.extent.nbytes % n_rows:
                raise ModelFormatError(
                    f"{tensor.name} has shape {list(tensor.shape)}; the first dimension should be "
                    f"that of the {count} experts. It is damaged: pull it again."
                )
            tensors.append(_row(tensor, number))
        n_numbers = weight.n_numbers // weight.shape[0]
        return replace(weight, tensors=tuple(tensors), n_numbers=n_numbers)


def _row(tensor: StoredTensor, number: int) -> StoredTensor:
    path, offset, nbytes = tensor.extent
    row_nbytes = nbytes // tensor.shape[0]
    extent = Extent(path, offset + number * row_nbytes, row_nbytes)
    return replace(tensor, shape=tensor.shape[1:], extent=extent)


def _extents(weights: Sequence[StoredWeight]) -> Iterator[Extent]:
    for weight in weights:
        for tensor in weight.tensors:
            if math.prod(tensor.shape):
                yield tensor.extent
