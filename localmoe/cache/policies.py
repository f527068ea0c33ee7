"""Which expert to evict. Pure: no I/O, no clock, no memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from localmoe.weights.catalog import ExpertKey, MoeLayer


class Uses(NamedTuple):
    """How often the experts of one layer were used, float64 [E], by so many tokens."""

    tokens: float
    counts: npt.NDArray[np.float64]


UseRates = Mapping[int, npt.NDArray[np.float64]]
"""By layer: for each of its experts, the share of tokens that used it, float64 [E]."""


class Policy(Protocol):
    """Keeps the order of eviction of the experts that a cache holds."""

    def demand(self, layer: int, ids: Sequence[int]) -> None:
        """Note that these experts of a layer are demanded, held or not, row by row: [T * K]."""
        ...

    def insert(self, key: ExpertKey, *, expected: bool = False) -> None:
        """Hold an expert. `expected`: nobody demanded it, but somebody soon may."""
        ...

    def remove(self, key: ExpertKey) -> None:
        """Hold an expert no longer. Raises KeyError if it is not held."""
        ...

    def victim(self, pinned: Container[ExpertKey]) -> ExpertKey | None:
        """Return what to evict next that is not pinned; None if all are. Does not remove it."""
        ...

    def uses(self) -> Mapping[int, Uses]:
        """Return what each layer's experts were used; nothing where that is not counted."""
        ...


MakePolicy = Callable[[Sequence[MoeLayer]], Policy]
"""Makes the policy of one size class from its layers, in their order."""


class Lru:
    """Evicts the expert that was demanded longest ago, or one that was expected in vain."""

    def __init__(self, layers: Sequence[MoeLayer]) -> None:
        self._order: OrderedDict[ExpertKey, None] = OrderedDict()
        self._expected: dict[int, set[int]] = {layer.layer: set() for layer in layers}

    def demand(self, layer: int, ids: Sequence[int]) -> None:
        """Make the held ones the most recent; what was expected of this layer was a mistake."""
        wanted = dict.fromkeys(ids)
        for expert in self._expected[layer].difference(wanted):
            self._order.move_to_end(ExpertKey(layer, expert), last=False)
        self._expected[layer].clear()
        for expert in wanted:
            key = ExpertKey(layer, expert)
            if key in self._order:
                self._order.move_to_end(key)

    def insert(self, key: ExpertKey, *, expected: bool = False) -> None:
        """Hold an expert as the most recent one."""
        self._order[key] = None
        if expected:
            self._expected[key.layer].add(key.expert)

    def remove(self, key: ExpertKey) -> None:
        """Hold an expert no longer."""
        del self._order[key]
        self._expected[key.layer].discard(key.expert)

    def victim(self, pinned: Container[ExpertKey]) -> ExpertKey | None:
        """Return the least recent expert that is not pinned."""
        return next((key for key in self._order if key not in pinned), None)

    def uses(self) -> Mapping[int, Uses]:
        """Return nothing: uses are not counted."""
        return {}
