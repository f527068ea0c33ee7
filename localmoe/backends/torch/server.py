"""Experts for a model that computes: asked for early by routers, served part by part."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from localmoe.cache.expert_cache import ExpertCache
from localmoe.cache.lease import Lease
from localmoe.cache.sweep import Sweep
from localmoe.closing import Closing
from localmoe.errors import InterruptedDecodeError

Group = Mapping[int, int]
"""Experts whose part is in place: {expert: slot}."""


class Served(Closing):
    """The experts of one layer for one step; closed when they have been used."""

    def __init__(self, held: Lease | Sweep, server: ExpertServer) -> None:
        self._held, self._server = held, server

    def passes(self, part: int) -> Iterator[Group]:
        """Yield groups of experts as this part of them comes; each once. Raises ExpertReadError."""
        held = self._held
        groups = held.passes(part) if isinstance(held, Sweep) else _arrivals(held, part)
        while True:
            began = time.perf_counter()
            group = next(groups, None)
            self._server.stall_seconds += time.perf_counter() - began
            if group is None:
                return
            yield group

    def close(self) -> None:
        """Give the experts back."""
        self._held.close()


class ExpertServer:
    """Between a model's modules and the cache. Used by the thread that computes."""

    def __init__(self, cache: ExpertCache) -> None:
        self.cache = cache
        self.interrupted = False
        """Set by anybody: the next layer raises InterruptedDecodeError."""
        self.stall_seconds = 0.0
        self.split_layers = 0
        self._early: dict[int, tuple[list[int], Lease]] = {}

    def begin(self, layer: int, ids: list[int]) -> None:
        """Start to read what a router chose; `serve` is called with the same ids later."""
        if layer in self._early or not self.cache.fits(layer, ids):
            return
        self._early[layer] = ids, self.cache.acquire(layer, ids)

    def serve(self, layer: int, ids: list[int]) -> Served:
        """Hold the experts of a layer that T tokens chose, ids [T * K]. To be closed.

        Raises InterruptedDecodeError.
        """
        if self.interrupted:
            raise InterruptedDecodeError("the decode was interrupted")
        before, lease = self._early.pop(layer, (None, None))
        if lease and before == ids:
            return Served(lease, self)
        if lease:
            lease.close()
        if self.cache.fits(layer, ids):
            return Served(self.cache.acquire(layer, ids), self)
        self.split_layers += 1
        return Served(self.cache.sweep(layer, ids), self)

    def finish(self) -> None:
        """A step has ended, well or not: what was begun and never used is given back."""
        for _, lease in self._early.values():
            lease.close()
        self._early.clear()
        self.cache.finish_step()


def _arrivals(lease: Lease, part: int) -> Iterator[Group]:
    experts: Sequence[int] = list(lease.slots)
    for places in lease.arrivals(part, experts):
        yield {experts[place]: lease.slots[experts[place]] for place in places}
