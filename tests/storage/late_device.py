"""A device whose queues, copies up, copies down and computing, run in any order that they may."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from localmoe.cache.link import Copies, Run

Queue = Literal["uploads", "downloads", "computing"]
Memory = bytearray | memoryview


@dataclass
class Mark:
    """Stands for all that was put into a queue before it."""

    device: LateDevice
    is_reached: bool = False

    def done(self) -> bool:
        """Say so; now and then some work is done first."""
        self.device.work(self.device.random.randrange(3))
        return self.is_reached

    def wait(self) -> None:
        """Work until it is reached."""
        time.sleep(self.device.wait_seconds)
        while not self.is_reached:
            assert self.device.work(1), "what is waited for waits for something that never comes"


@dataclass
class LateDevice:
    """Implements `cache.link.Link`. Does nothing before it must, or before chance says so."""

    host: memoryview
    memory: Memory
    seed: int = 0
    computes_at_once: bool = False
    """Whether computing is done elsewhere, at once: then copies are what is late."""
    orders: bool = True
    """Whether `order` and `used` do what they say: a test without them has to fail."""
    copied_nbytes: int = 0
    wait_seconds: float = 0.0
    """How long waiting for copies takes beside what they wait for."""
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self._queues: dict[Queue, deque[Callable[[], bool]]] = {
            "uploads": deque(),
            "downloads": deque(),
            "computing": deque(),
        }

    def upload(self, run: Run) -> None:
        """See Link."""
        self.copied_nbytes += run.nbytes
        self._put("uploads", partial(self._copy, run, self.host, self.memory))

    def uploads(self) -> Mark:
        """See Link."""
        return self._mark("uploads")

    def download(self, runs: Sequence[Run]) -> Mark:
        """See Link."""
        self._put_wait("downloads", self._mark("uploads"))
        for run in runs:
            self._put("downloads", partial(self._copy, run, self.memory, self.host))
        return self._mark("downloads")

    def hold_uploads(self, copies: Copies) -> None:
        """See Link."""
        assert isinstance(copies, Mark)
        self._put_wait("uploads", copies)

    def order(self, copies: Copies) -> None:
        """See Link."""
        assert isinstance(copies, Mark)
        if self.computes_at_once:
            copies.wait()
        else:
            self._put_wait("computing", copies)

    def used(self) -> None:
        """See Link."""
        self._put_wait("uploads", self._mark("computing"))

    def compute(self, what: Callable[[], None]) -> None:
        """Do something with the memory, later."""
        self._put("computing", what)

    def work(self, steps: int) -> bool:
        """Do so many things; return whether there was anything that could be done."""
        for _ in range(steps):
            names: list[Queue] = ["uploads", "downloads", "computing"]
            self.random.shuffle(names)
            if not any(self._run_first(self._queues[name]) for name in names):
                return False
        return True

    def finish(self) -> None:
        """Do all that is left."""
        while any(self._queues.values()):
            assert self.work(1), "the queues wait for each other"

    def _run_first(self, queue: deque[Callable[[], bool]]) -> bool:
        if not queue or not queue[0]():
            return False
        queue.popleft()
        return True

    def _copy(self, run: Run, source: Memory, target: Memory) -> None:
        places = slice(run.host, run.host + run.nbytes), slice(run.device, run.device + run.nbytes)
        of_source, of_target = places if source is self.host else places[::-1]
        target[of_target] = source[of_source]

    def _put(self, name: Queue, what: Callable[[], None]) -> None:
        def run() -> bool:
            what()
            return True

        self._queues[name].append(run)

    def _put_wait(self, name: Queue, mark: Mark) -> None:
        if self.orders:
            self._queues[name].append(lambda: mark.is_reached)

    def _mark(self, name: Queue) -> Mark:
        mark = Mark(self)
        self._put(name, partial(setattr, mark, "is_reached", True))
        return mark
