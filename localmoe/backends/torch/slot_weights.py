"""Weights as tensors: what a slot holds of one part of an expert."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from localmoe.backends.torch.expert_sources import ExpertSource
from localmoe.cache.memory import HostMemory


class SlotWeights(Protocol):
    """One part of the experts of one layer."""

    def at(self, slot: int) -> tuple[Tensor, Tensor | None]:
        """Return matrix and bias of the expert in a slot, valid until the next call."""
        ...


class Place(NamedTuple):
    """Where one part of a layer's experts lies: slot s begins at start + s * stride, in bytes."""

    start: int
    stride: int
    slots: int


def memory_tensor(memory: HostMemory) -> Tensor:
    """Return slot memory as bytes, uint8. It does not keep the memory from being closed."""
    array = (ctypes.c_uint8 * memory.nbytes).from_address(memory.address)
    return torch.frombuffer(array, dtype=torch.uint8)


class StoredWeights:
    """Parts that can be computed with as they lie in their slots: no copy is made."""

    def __init__(
        self,
        memory: Tensor,
        place: Place,
        shapes: Sequence[tuple[int, ...]],
        dtype: torch.dtype,
    ) -> None:
        """`shapes`: of the matrix, and of the bias that follows it where there is one."""
        views, start = [], place.start
        for shape in shapes:
            views.append(_view(memory, place._replace(start=start), shape, dtype))
            start += math.prod(shape) * dtype.itemsize
        self._weights = views[0]
        self._biases = views[1] if len(views) > 1 else None

    def at(self, slot: int) -> tuple[Tensor, Tensor | None]:
        """See SlotWeights."""
        return self._weights[slot], None if self._biases is None else self._biases[slot]


def _view(memory: Tensor, place: Place, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return the same tensor of every slot, [slots, *shape]."""
    size = dtype.itemsize
    typed = memory[: len(memory) - len(memory) % size].view(dtype)
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return typed.as_strided(
        (place.slots, *shape), (place.stride // size, *strides), place.start // size
    )


class DecodedWeights:
    """Parts that are stored otherwise than they are computed with: decoded whenever they are used.

    A slot holds them as they are in the checkpoint, which is a half to an eighth of the room.
    """

    def __init__(self, memory: Tensor, place: Place, sources: Sequence[ExpertSource]) -> None:
        """`sources`: of the matrix, and of the bias where there is one."""
        self._memory, self._place, self._sources = memory, place, tuple(sources)

    def at(self, slot: int) -> tuple[Tensor, Tensor | None]:
        """See SlotWeights."""
        start = self._place.start + slot * self._place.stride
        found = []
        for source in self._sources:
            raw = self._memory[start : start + source.expert_nbytes]
            out = torch.empty(source.shape, dtype=source.dtype, device=raw.device)
            source.decode(raw, out)
            found.append(out)
            start += source.expert_nbytes
        return found[0], found[1] if len(found) > 1 else None
