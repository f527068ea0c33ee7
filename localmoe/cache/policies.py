"""Which expert to evict. Pure: no I/O, no clock, no memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Mapping, Sequence
from itertools import islice
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

    keeps_order: bool
    """Whether experts that come do not go before those that are there, and what is not demanded
    keeps its place: then a list of candidates serves compiled code for a while."""

    def demand(self, layer: int, ids: Sequence[int]) -> None:
        """Note that these experts of a layer are demanded, held or not, row by row: [T * K]."""
        ...

    def insert(self, key: ExpertKey) -> None:
        """Hold an expert."""
        ...

    def remove(self, key: ExpertKey) -> None:
        """Hold an expert no longer. Raises KeyError if it is not held."""
        ...

    def victim(self, pinned: Container[ExpertKey]) -> ExpertKey | None:
        """Return what to evict next that is not pinned; None if all are. Does not remove it."""
        ...

    def candidates(self, count: int) -> Sequence[ExpertKey]:
        """Return up to `count` held experts, those to evict first at the front; all if fewer.

        Where the policy `keeps_order` they stay right for a while: what is demanded meanwhile is
        to be left out.
        """
        ...

    def settle(self) -> None:
        """Do what was put off: called while there is nothing to do but wait."""
        ...

    def uses(self) -> Mapping[int, Uses]:
        """Return what each layer's experts were used; nothing where that is not counted."""
        ...


MakePolicy = Callable[[Sequence[MoeLayer]], Policy]
"""Makes the policy of one size class from its layers, in their order."""


class Lru:
    """Evicts the expert that was demanded longest ago."""

    keeps_order = True

    def __init__(self, layers: Sequence[MoeLayer]) -> None:
        self._order: OrderedDict[ExpertKey, None] = OrderedDict()

    def demand(self, layer: int, ids: Sequence[int]) -> None:
        """Make the held ones the most recent."""
        for expert in dict.fromkeys(ids):
            key = ExpertKey(layer, expert)
            if key in self._order:
                self._order.move_to_end(key)

    def insert(self, key: ExpertKey) -> None:
        """Hold an expert as the most recent one."""
        self._order[key] = None

    def remove(self, key: ExpertKey) -> None:
        """Hold an expert no longer."""
        del self._order[key]

    def victim(self, pinned: Container[ExpertKey]) -> ExpertKey | None:
        """Return the least recent expert that is not pinned."""
        return next((key for key in self._order if key not in pinned), None)

    def candidates(self, count: int) -> list[ExpertKey]:
        """Return the least recent experts, in their order."""
        return list(islice(self._order, count))

    def settle(self) -> None:
        """Nothing is put off."""

    def uses(self) -> Mapping[int, Uses]:
        """Return nothing: uses are not counted."""
        return {}
