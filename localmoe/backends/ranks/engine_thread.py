"""The thread that computes: whoever waits for it stays able to notice what happens meanwhile.

An engine that waits for a machine that is gone cannot be woken. It waits in here, and no other
thread does.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What became of a call."""

    value: Any = None
    error: BaseException | None = None


Work = tuple[Callable[[], Any], Callable[[Outcome], None]]


class EngineThread:
    """Makes one call after the other."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="localmoe rank", daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], Any], report: Callable[[Outcome], None]) -> None:
        """Have a function called, and what became of it reported, both by this thread."""
        self._calls.put((function, report))

    def end(self, seconds: float) -> bool:
        """Make no more calls after those that were asked for; return whether they are all made."""
        self._calls.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (work := self._calls.get()) is not None:
            function, report = work
            try:
                outcome = Outcome(function())
            except BaseException as error:  # whatever it is, somebody waits for it
                outcome = Outcome(error=error)
            report(outcome)
