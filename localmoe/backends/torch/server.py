"""Experts for a model that computes: asked for early by routers, served part by part."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from localmoe.backends.torch.far_experts import FarExperts
from localmoe.cache.expert_cache import ExpertCache
from localmoe.cache.lease import Lease
from localmoe.cache.sweep import Sweep
from localmoe.closing import Closing
from localmoe.errors import InterruptedDecodeError


class Group(NamedTuple):
    """Experts whose part is in place: {expert: slot}; `is_far`: in slots of host memory."""

    slots: Mapping[int, int]
    is_far: bool = False


class Served(Closing):
    """The experts of one layer for one step; closed when they have been used."""

    def __init__(self, near: Lease | Sweep, far: Lease | None, server: ExpertServer) -> None:
        self._near, self._far, self._server = near, far, server

    def passes(self, part: int) -> Iterator[Group]:
        """Yield groups of experts as this part of them comes; each once. Raises ExpertReadError."""
        near = self._near
        slots = near.passes(part) if isinstance(near, Sweep) else _arrivals(near, part)
        for each in self._waited(slots):
            yield Group(each)
            self._server.used()
        # The processor's turn comes last: a device computes the others meanwhile.
        for each in self._waited(_arrivals(self._far, part)) if self._far else ():
            yield Group(each, is_far=True)

    def close(self) -> None:
        """Give the experts back."""
        self._server.used()
        self._near.close()
        if self._far:
            self._far.close()

    def _waited(self, groups: Iterator[Mapping[int, int]]) -> Iterator[Mapping[int, int]]:
        while True:
            began = time.perf_counter()
            group = next(groups, None)
            self._server.stall_seconds += time.perf_counter() - began
            if group is None:
                return
            yield group


class ExpertServer:
    """Between a model's modules and the caches. Used by the thread that computes."""

    def __init__(self, cache: ExpertCache, used: Callable[[], None]) -> None:
        """`used` is called when what was yielded has been put to use, on a device perhaps later."""
        self.cache, self.used = cache, used
        self.far: FarExperts | None = None
        """Decides which experts are computed in host memory; None: none of them."""
        self.interrupted = False
        """Set by anybody: the next layer raises InterruptedDecodeError."""
        self.stall_seconds = 0.0
        self.split_layers = 0
        self._early: dict[int, tuple[list[int], Served]] = {}

    def begin(self, layer: int, ids: list[int]) -> None:
        """Start to read what a router chose; `serve` is called with the same ids later."""
        if layer in self._early or not self.cache.fits(layer, ids):
            return
        self._early[layer] = ids, self._hold(layer, ids)

    def serve(self, layer: int, ids: list[int]) -> Served:
        """Hold the experts of a layer that T tokens chose, ids [T * K]. To be closed.

        Raises InterruptedDecodeError.
        """
        if self.interrupted:
            raise InterruptedDecodeError("the decode was interrupted")
        before, served = self._early.pop(layer, (None, None))
        if served and before == ids:
            return served
        if served:
            served.close()
        if self.cache.fits(layer, ids):
            return self._hold(layer, ids)
        if self.far:
            self.far.let_go()
        self.split_layers += 1
        return Served(self.cache.sweep(layer, ids), None, self)

    def finish(self) -> None:
        """A step has ended, well or not: what was begun and never used is given back."""
        for _, served in self._early.values():
            served.close()
        self._early.clear()
        if self.far:
            self.far.finish()
        self.cache.finish_step()

    def _hold(self, layer: int, ids: list[int]) -> Served:
        far = self.far.choose(layer, ids) if self.far else set()
        if not self.far or not far:
            return Served(self.cache.acquire(layer, ids), None, self)
        near = self.cache.acquire(layer, [expert for expert in ids if expert not in far])
        return Served(near, self.far.hold(layer, far), self)


def _arrivals(lease: Lease, part: int) -> Iterator[Mapping[int, int]]:
    experts: Sequence[int] = list(lease.slots)
    for places in lease.arrivals(part, experts):
        yield {experts[place]: lease.slots[experts[place]] for place in places}
