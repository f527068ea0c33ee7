"""The arrays that experts are read into and computed from: MLX's own memory, written in place."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx

from localmoe.backends.mlx.switches import Switch
from localmoe.cache.slots import SlotClass


class SlotArrays:
    """Makes the planes of a `PlanePool`, and has the switches of its layers compute with them.

    The memory of an evaluated array stays where it is for as long as the array lives, and may be
    written through the buffer protocol (docs/src/usage/numpy.rst of MLX). Every array is held
    here: what has another owner is never given to the result of an operation.
    """

    def __init__(self, classes: Sequence[SlotClass], switches: Mapping[int, Switch]) -> None:
        self._users = [[switches[layer.layer] for layer in each.layers] for each in classes]
        self._arrays: list[list[mx.array]] = [[] for _ in classes]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for arrays in self._arrays for array in arrays)

    def make(self, index: int, count: int) -> list[int]:
        """Make arrays for so many slots of a class; return their addresses, one for each part.

        Those that there were go first, and their memory back to the system.
        """
        users = self._users[index]
        for switch in users:
            switch.put(())
        self._arrays[index] = []
        mx.clear_cache()
        if not count:
            return []
        arrays = self._arrays[index]
        for each in users[0].arrays:
            arrays.append(mx.zeros((count, *each.shape), each.dtype))
            mx.eval(arrays[-1])
        for switch in users:
            switch.put(arrays)
        return [_address(array) for array in arrays]

    def close(self) -> None:
        """Give all memory back. May be called twice."""
        for index in range(len(self._arrays)):
            self.make(index, 0)


def _address(array: Any) -> int:
    """Return where an evaluated array's memory begins; it is contiguous and writable."""
    anchor = ctypes.c_char.from_buffer(array)  # raises where it is neither
    return ctypes.addressof(anchor)
