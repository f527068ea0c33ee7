"""Ctrl-C while an engine computes: the engine stops at a place of its own choosing."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self


@contextmanager
def whole_or_undone(stop: Callable[[], None], undo: Callable[[], object]) -> Iterator[None]:
    """Have what this lasts for done to its end, or undone: after any error, Ctrl-C included.

    `stop` is what Ctrl-C calls meanwhile; KeyboardInterrupt is raised when all is undone.
    """
    with DeferredInterrupt(stop) as interrupt:
        try:
            yield
            interrupt.check()
        except BaseException:
            undo()
            interrupt.check()
            raise


class DeferredInterrupt:
    """In a `with` block, Ctrl-C calls `stop` instead of raising KeyboardInterrupt anywhere.

    Raised inside the cache, it could leave experts half acquired. `check` raises it where that does
    no harm. Only Python's own handler is replaced, and only in the main thread: whoever has
    installed another one has decided what Ctrl-C means.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self.pressed = False
        self._before: object = None

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed in this block."""
        if self.pressed:
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _press(self, _number: int, _frame: FrameType | None) -> None:
        self.pressed = True
        self._stop()
