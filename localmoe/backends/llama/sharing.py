"""Cores that other processes keep busy: what is computed on them makes all other cores wait.

llama.cpp splits each product over its threads, which meet behind it some 1,500 times a token. When
a core has somebody else's work, the thread there comes late each time. One thread fewer is faster
then, for single tokens: longer steps meet more seldom.

The bits stay those of all threads. Only attention to a long context depends on their number, and it
is computed on all of them even then (`native/callback.c`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import psutil

_INTERVAL_SECONDS = 0.3
_BUSY_CORES = 0.35
"""So much of a core that others use is noticed: beside two of our threads on two cores, a process
that always has work gets two thirds of one."""
_CALM_CORES = 0.15


def busy_seconds() -> float:
    """Return the time that the cores which this process may use have worked, since boot."""
    times = psutil.cpu_times(percpu=True)
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(times))
    kinds = ("user", "nice", "system", "irq", "softirq")
    return sum(getattr(times[c], kind, 0.0) for c in cores if c < len(times) for kind in kinds)


class CoreSharing:
    """Says how many threads should compute, from what others did of late."""

    def __init__(
        self,
        n_threads: int,
        n_cores: int,
        *,
        fixed: bool = False,
        busy: Callable[[], float] = busy_seconds,
        own: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`n_threads` compute where nobody else does; always, if that is fixed.

        The rest are clocks, in seconds.
        """
        self.most, self._n_cores, self._fixed = n_threads, n_cores, fixed
        self._busy, self._own, self._clock = busy, own, clock
        self._calm_looks = 0
        self.n_threads = n_threads
        """How many should compute now."""
        self.alone = True
        """Whether nobody else wants the cores, so that who waits may keep its own."""
        self._then = self._read()

    def look(self) -> bool:
        """Return whether `n_threads` or `alone` has changed since the last call."""
        at, busy, own = self._then
        if self._clock() - at < _INTERVAL_SECONDS:
            return False
        self._then = self._read()
        passed = self._then[0] - at
        others = (self._then[1] - busy - (self._then[2] - own)) / passed
        before = self.n_threads, self.alone
        if others >= _BUSY_CORES:
            self._calm_looks = 0
            self._share(round(max(1.0, others)))
        elif others < _CALM_CORES:
            self._calm_looks += 1
            if self._calm_looks > 1:  # between two bursts of work nobody works either
                self._share(0)
        return (self.n_threads, self.alone) != before

    def _share(self, n_others: int) -> None:
        self.alone = n_others == 0
        if not self._fixed:
            self.n_threads = max(1, min(self.most, self._n_cores - n_others))

    def _read(self) -> tuple[float, float, float]:
        return self._clock(), self._busy(), self._own()
