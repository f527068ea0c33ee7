"""A device whose two queues of work, copies and computing, run in any order that they may."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from localmoe.cache.link import Copies

Queue = Literal["copies", "computing"]


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
    memory: bytearray | memoryview
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
            "copies": deque(),
            "computing": deque(),
        }

    def copy(self, source: int, target: int, nbytes: int) -> None:
        """See Link."""

        def run() -> bool:
            self.memory[target : target + nbytes] = self.host[source : source + nbytes]
            return True

        self.copied_nbytes += nbytes
        self._queues["copies"].append(run)

    def begun(self) -> Mark:
        """See Link."""
        return self._mark("copies")

    def order(self, copies: Copies) -> None:
        """See Link."""
        assert isinstance(copies, Mark)
        if self.computes_at_once:
            copies.wait()
        elif self.orders:
            self._queues["computing"].append(lambda: copies.is_reached)

    def used(self) -> None:
        """See Link."""
        mark = self._mark("computing")
        if self.orders:
            self._queues["copies"].append(lambda: mark.is_reached)

    def compute(self, what: Callable[[], None]) -> None:
        """Do something with the memory, later."""

        def run() -> bool:
            what()
            return True

        self._queues["computing"].append(run)

    def work(self, steps: int) -> bool:
        """Do so many things; return whether there was anything that could be done."""
        for _ in range(steps):
            names: list[Queue] = ["copies", "computing"]
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

    def _mark(self, name: Queue) -> Mark:
        mark = Mark(self)

        def run() -> bool:
            mark.is_reached = True
            return True

        self._queues[name].append(run)
        return mark
