"""Experts that are not on the device and are computed in host memory, where that is faster.

The processor rounds otherwise than a GPU, so what an answer says then depends on which experts were
on the device: it is off unless asked for.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from localmoe.backends.torch.levels import Levels
from localmoe.cache.lease import Lease
from localmoe.cache.link import Run
from localmoe.weights.catalog import ExpertKey, MoeLayer

_ROUNDS = 3
"""Of which the fastest counts: the first one fetches code."""
_MOST_RISING = 64
"""Layers whose experts are on their way up at once: they hold slots of both levels."""


@dataclass(frozen=True)
class Costs:
    """What an expert takes, in seconds: to be computed here, per row, or to be copied."""

    row: float
    copy: float


class FarExperts:
    """Decides who is computed in host memory, and brings them nearer meanwhile."""

    def __init__(self, levels: Levels, costs: Mapping[int, Costs]) -> None:
        """`costs` are by size class."""
        self._levels, self._costs = levels, costs
        self._rising: list[Lease] = []

    def choose(self, layer: int, ids: Iterable[int]) -> set[int]:
        """Return who of those that T tokens chose, ids [T * K], is to be computed here."""
        costs = self._costs[self._levels.slots.class_index(layer)]
        here = self._levels.cache
        return {
            expert
            for expert, n_rows in Counter(ids).items()
            if n_rows * costs.row < costs.copy and ExpertKey(layer, expert) not in here
        }

    def hold(self, layer: int, experts: Iterable[int]) -> Lease:
        """Hold experts in host memory; for their next use they are copied to the device."""
        experts = list(experts)
        lease = self._levels.below.acquire(layer, experts)
        rising = self._levels.cache.acquire_ahead(layer, experts)
        if rising:
            self._rising.append(rising)
        return lease

    def finish(self) -> None:
        """A step has ended: copies under way go on, so long as they are not too many.

        To let them go before they have ended is to wait for them.
        """
        assert self._levels.link is not None
        if self._levels.link.uploads().done() or len(self._rising) > _MOST_RISING:
            self.let_go()

    def let_go(self) -> None:
        """Hold nothing any more that is on its way to the device."""
        for lease in self._rising:
            lease.close()
        self._rising.clear()


def measure(
    levels: Levels, layers: Iterable[MoeLayer], compute: Callable[[int, int], object]
) -> dict[int, Costs]:
    """Measure one expert of each size class, before anything is asked for.

    `compute(layer, slot)` computes a row with the expert in a slot of host memory. Raises
    ExpertReadError.
    """
    found: dict[int, Costs] = {}
    for layer in layers:
        index = levels.slots.class_index(layer.layer)
        if index in found:
            continue
        with levels.below.acquire(layer.layer, [0]) as lease:
            for part in range(len(layer.parts)):
                lease.wait(part)
            slot = lease.slots[0]
            row = _seconds(partial(compute, layer.layer, slot))
            copy = _seconds(partial(_copy, levels, layer, slot))
        found[index] = Costs(row, copy)
    return found


def _copy(levels: Levels, layer: MoeLayer, slot: int) -> None:
    """Copy an expert to a slot of the device, where nobody is yet, and wait."""
    assert levels.link is not None
    for part in range(len(layer.parts)):
        source = levels.below.placement.start(layer.layer, slot, part)
        target = levels.cache.placement.start(layer.layer, 0, part)
        levels.link.upload(Run(source, target, layer.part_nbytes[part]))
    levels.link.uploads().wait()


def _seconds(work: Callable[[], object]) -> float:
    """Return what it takes at best."""
    found = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return min(found)
