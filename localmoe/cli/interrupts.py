"""Ctrl-C while an answer is being given."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Self


class BrokenOffError(KeyboardInterrupt):
    """Ctrl-C was pressed again and again: the program has to end."""


class Interrupts:
    """Turns Ctrl-C into a call of `stop` inside a `with` block; the third raises BrokenOffError.

    An exception at any place inside the engine could leave its cache half changed, so the first
    ones only ask: the answer ends after the step that is under way.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self.count = 0

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._interrupted)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 2:
            raise BrokenOffError
        self._stop()
