"""The experts that a layer's router chose, in the memory where llama.cpp keeps their numbers."""

from __future__ import annotations

import ctypes as C
from collections.abc import Mapping
from itertools import chain

from localmoe.backends.llama.bindings import Tensor
from localmoe.errors import ModelFormatError


class Ids:
    """The routed expert numbers of one layer, int32 [T, K] in llama.cpp's own memory.

    `experts` lists them row by row, `slots` where they lie: the graph sees these when it needs to.
    """

    def __init__(self, tensor: int, n_experts: int) -> None:
        t = Tensor.from_address(tensor)
        used, rows = t.ne[0], t.ne[1]
        self.address = t.data
        row = C.c_int32 * used
        self._rows = [row.from_address(t.data + i * t.nb[1]) for i in range(rows)]
        self.experts: list[int] = list(chain.from_iterable(self._rows))
        if self.experts and not 0 <= min(self.experts) <= max(self.experts) < n_experts:
            raise ModelFormatError(
                f"the router chose an expert outside of 0 to {n_experts - 1}: the model's weights "
                "are damaged"
            )
        self._used = used
        self.slots = self.experts

    def assign(self, slots: Mapping[int, int]) -> None:
        """Replace expert numbers by slot numbers."""
        self.slots = [slots[expert] for expert in self.experts]
        self.show_slots()

    def show_slots(self) -> None:
        """Let the graph see slot numbers."""
        self._show(self.slots)

    def show_experts(self) -> None:
        """Let the graph see expert numbers again: per-expert scales are in that order."""
        self._show(self.experts)

    def _show(self, numbers: list[int]) -> None:
        for i, row in enumerate(self._rows):
            row[:] = numbers[i * self._used : (i + 1) * self._used]
