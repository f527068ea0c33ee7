"""Buffers through which bytes pass whose place in a slot does not suit direct reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import NamedTuple

from localmoe.cache.memory import HostMemory, Memory
from localmoe.weights.catalog import ExpertPart, MoeLayer

WARM_THREADS = 2
"""Who read before any demand, beside the workers: two reads at once are as fast as the device; more
would be in the way of the first demand."""
BOUNCE_NBYTES = 1 << 20
"""Of one buffer: what is copied out of it is still in the processor's cache."""


class Bounce(NamedTuple):
    """One buffer: `nbytes`, whole pages, from `start` of `memory` on."""

    memory: Memory
    start: int
    nbytes: int


class BounceBuffers:
    """A fixed number of buffers. Pages that were never used take no memory."""

    def __init__(self, count: int) -> None:
        self._memory = HostMemory(count * BOUNCE_NBYTES)
        self._free: SimpleQueue[Bounce] = SimpleQueue()
        for number in range(count):
            self._free.put(Bounce(self._memory, number * BOUNCE_NBYTES, BOUNCE_NBYTES))

    @contextmanager
    def lend(self) -> Iterator[Bounce]:
        """Give a buffer, once one is free, for as long as the context is open."""
        if not self._memory.nbytes:
            raise RuntimeError("no buffers were made: nothing can be read apart")
        buffer = self._free.get()
        try:
            yield buffer
        finally:
            self._free.put(buffer)

    def close(self) -> None:
        """Give the memory back; nobody may have a buffer. May be called twice."""
        self._memory.close()


def buffers_needed(layers: Iterable[MoeLayer], workers: int, tight: bool = False) -> int:
    """Return how many buffers a cache has that reads these layers with so many workers.

    One for each thread that may read; none where every part lies expert after expert, and has
    slack around it in its slot (is not `tight`). A budget counts BOUNCE_NBYTES for each.
    """
    whole = not tight and all(
        isinstance(part, ExpertPart) for layer in layers for part in layer.parts
    )
    return 0 if whole else workers + WARM_THREADS
