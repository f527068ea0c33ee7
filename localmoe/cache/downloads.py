"""Experts that a device has no room for any more: copied down into slots in host memory."""

from __future__ import annotations

from collections import deque

from localmoe.cache.expert_cache import ExpertCache
from localmoe.cache.link import Copies, Link, Run
from localmoe.cache.placement import Placement
from localmoe.cache.reader import Load
from localmoe.weights.catalog import ExpertKey

Place = tuple[int, int]
"""A slot on the device: its size class and its number."""


class Downloads:
    """Keeps each expert in one of two levels: what leaves the upper one goes to the lower one."""

    def __init__(self, placement: Placement, below: ExpertCache, link: Link) -> None:
        """`placement` is the one of the device."""
        self._placement, self._below, self._link = placement, below, link
        self._coming: deque[tuple[Load, Copies]] = deque()
        self._leaving: dict[Place, Copies] = {}

    def begin(self, key: ExpertKey, slot: int) -> None:
        """Copy an expert down that is about to lose its slot, if it can be held below."""
        self.look()
        load = self._below.adopt(key)
        if load is None:
            return
        layer, n_parts = key.layer, len(load.part_nbytes)
        copies = self._link.download(
            [
                Run(
                    self._below.placement.start(layer, load.slot, part),
                    self._placement.start(layer, slot, part),
                    load.part_nbytes[part],
                )
                for part in range(n_parts)
            ]
        )
        load.pulled_by = self
        self._coming.append((load, copies))
        self._leaving[self._place(layer, slot)] = copies

    def clear(self, layer: int, slot: int) -> None:
        """Have the next upload wait until what was in a slot of the device has left it."""
        copies = self._leaving.pop(self._place(layer, slot), None)
        if copies:
            self._link.hold_uploads(copies)

    def look(self, *, wait: bool = False) -> None:
        """See `reader.Puller`: tell loads whose copies have ended."""
        if wait and self._coming:
            self._coming[0][1].wait()
        while self._coming and self._coming[0][1].done():
            load, _ = self._coming.popleft()
            for part in range(len(load.part_nbytes)):
                load.arrived(part, None)

    def order(self, load: Load, part: int) -> None:
        """Do nothing: what has come is in host memory for everybody."""

    def finish(self) -> None:
        """Wait for all copies."""
        while self._coming:
            self.look(wait=True)

    def _place(self, layer: int, slot: int) -> Place:
        return self._placement.pool.class_index(layer), slot
