"""Reads that nobody waits for: experts that were hot in earlier runs, while nothing is computed."""

from __future__ import annotations

import errno
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from localmoe.cache.bounce import WARM_THREADS
from localmoe.cache.policies import UseRates
from localmoe.cache.reader import Job, Load, announce
from localmoe.errors import ExpertReadError
from localmoe.weights.catalog import ExpertKey, MoeLayer

_QUIET_SECONDS = 0.25
"""So long after the last demand nobody is waiting: the next prompt is being thought of."""
_PAUSE_SECONDS = 0.05


def hottest(layers: Iterable[MoeLayer], rates: UseRates, count: int) -> list[ExpertKey]:
    """Return the `count` experts of these layers that were used most, the first one most of all.

    Experts that were never used are left out.
    """
    found = [
        (-share, ExpertKey(layer.layer, expert))
        for layer in layers
        for expert, share in enumerate(rates.get(layer.layer, ())[: layer.n_experts])
        if share > 0
    ]
    return [key for _, key in sorted(found)[:count]]


class WarmStart:
    """Reads loads in threads of its own, one after the other, while nothing is demanded.

    All but the threads' own work is called by one thread.
    """

    def __init__(
        self,
        jobs: Callable[[Iterable[Load]], Iterable[Job]],
        read: Callable[[Job], None],
    ) -> None:
        """`jobs` gives the reads of loads of one layer, and `read` does one of them."""
        self._jobs, self._read = jobs, read
        self._queue: deque[Load] = deque()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self.keys: set[ExpertKey] = set()
        """What was begun and neither demanded nor forgotten since."""
        self._last_demand = -math.inf

    def begin(self, loads: Iterable[Load]) -> None:
        """Read these in their order. To be called once."""
        self._queue.extend(loads)
        self.keys.update(load.key for load in self._queue)
        for number in range(min(WARM_THREADS, len(self._queue))):
            name = f"localmoe-warm-{number}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def hold_off(self) -> None:
        """Begin nothing for a while: somebody demands experts."""
        self._last_demand = time.monotonic()

    def claim(self, load: Load) -> bool:
        """Take back a load that has not begun; return whether that is so. It never arrives then."""
        if not load.n_remaining:
            return False
        try:
            self._queue.remove(load)
        except ValueError:  # begun, done, or none of these
            return False
        return True

    def close(self) -> None:
        """Finish the reads that have begun, fail the others, end the threads; may be repeated."""
        self._closed = True
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        while self._queue:
            load = self._queue.popleft()
            for job in self._announced(load):
                cancelled = OSError(errno.ECANCELED, "the cache was closed")
                load.arrived(job.part, ExpertReadError(*job.extent, cancelled))

    def _work(self) -> None:
        pause = threading.Event()
        while not self._closed:
            if time.monotonic() - self._last_demand < _QUIET_SECONDS:
                pause.wait(_PAUSE_SECONDS)
                continue
            try:
                load = self._queue.popleft()
            except IndexError:
                return
            for job in self._announced(load):
                self._read(job)

    def _announced(self, load: Load) -> list[Job]:
        """Return the reads of a load that knows how many there are."""
        jobs = list(self._jobs([load]))
        announce(jobs)
        return jobs
