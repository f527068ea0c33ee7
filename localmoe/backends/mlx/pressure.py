"""When the system is short of memory slots are given back, and taken again when it has calmed."""

from __future__ import annotations

import ctypes
import math
import sys
import time
from collections.abc import Callable
from typing import Literal

from localmoe.cache.expert_cache import ExpertCache
from localmoe.cache.slots import SlotPool

Level = Literal["normal", "warning", "critical"]
Source = Callable[[], Level]
_LEVELS: dict[int, Level] = {1: "normal", 2: "warning", 4: "critical"}  # <sys/event.h>, macOS
_SYSCTL = b"kern.memorystatus_vm_pressure_level"
_KEPT = {"warning": 3 / 4, "critical": 1 / 2}
"""Of the slots that there are, so many stay."""
_LOOK_SECONDS = 0.5
_SETTLE_SECONDS = 5.0
"""So long after memory was given back its effect shows."""
_CALM_SECONDS = 60.0
"""So long it must have been calm; twice as long each time that it was not calm for good."""
_LONGEST_CALM_SECONDS = 3600.0


def system_pressure() -> Source | None:
    """Return what tells how short of memory this system is; None where nothing does."""
    if sys.platform != "darwin":
        return None
    libc = ctypes.CDLL(None)

    def level() -> Level:
        value, size = ctypes.c_int(1), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
        libc.sysctlbyname(_SYSCTL, ctypes.byref(value), ctypes.byref(size), None, 0)
        return _LEVELS.get(value.value, "normal")

    return level


class PressureWatch:
    """Looks at the system between steps, and changes how many slots there are.

    No class gets fewer slots than one token's experts need. What the slots held is forgotten when
    their number changes, for there must be no moment with more memory than before or after.
    """

    def __init__(
        self,
        cache: ExpertCache,
        pool: SlotPool,
        source: Source,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cache, self._pool, self._source, self._clock = cache, pool, source, clock
        self._full = tuple(pool.limits)
        self._next_look = self._given_back_at = -math.inf
        self._calm_since: float | None = None
        self._calm_seconds = _CALM_SECONDS
        self.given_back = 0
        """How often slots were given back."""

    def look(self) -> None:
        """Do what the system asks for; nothing may be held."""
        now = self._clock()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_SECONDS
        level = self._source()
        if level == "normal":
            self._take_again(now)
            return
        self._calm_since = None
        if now - self._given_back_at >= _SETTLE_SECONDS:
            self._give_back(_KEPT[level], now)

    def _give_back(self, kept: float, now: float) -> None:
        pairs = zip(self._pool.limits, self._pool.classes, strict=True)
        fewer = [max(int(n * kept), min(n, each.token_demand)) for n, each in pairs]
        if fewer == list(self._pool.limits):
            return
        if tuple(self._pool.limits) == self._full and self.given_back:
            self._calm_seconds = min(2 * self._calm_seconds, _LONGEST_CALM_SECONDS)
        self._cache.resize(fewer)
        self.given_back += 1
        self._given_back_at = now

    def _take_again(self, now: float) -> None:
        if self._calm_since is None:
            self._calm_since = now
        is_calm = now - self._calm_since >= self._calm_seconds
        if is_calm and tuple(self._pool.limits) != self._full:
            self._cache.resize(self._full)
