"""What an expert cache has done so far."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from localmoe.weights.catalog import ExpertKey

ExpertWatch = Callable[[Literal["hit", "miss", "ahead"], Iterable[ExpertKey]], None]
"""Told of experts that were asked for and found, asked for and missing, or read ahead of that.

Called in the thread that decodes; a step's requests are told by the next `Engine.stats`.
"""


@dataclass(frozen=True)
class CacheStats:
    """Counters that only grow. A request is one distinct expert of one `acquire`."""

    hits: int = 0
    misses: int = 0
    read_bytes: int = 0
    """Bytes of experts read on demand, without alignment slack."""
    prefetched: int = 0
    """Experts whose reading ahead of demand was begun."""


class Counters:
    """What `CacheStats` is a snapshot of."""

    def __init__(self) -> None:
        self.hits = self.misses = self.read_bytes = self.prefetched = 0
        self._ahead: set[ExpertKey] = set()
        self.watch: ExpertWatch | None = None

    def request(self, keys: Collection[ExpertKey], missing: Collection[ExpertKey]) -> None:
        """Count a request; what was read ahead and is asked for now was not found, either."""
        if self._ahead:
            missing = [*missing, *self._ahead.intersection(keys)]
            self._ahead.difference_update(keys)
        self.hits += len(keys) - len(missing)
        self.misses += len(missing)
        if self.watch:
            self.watch("hit", [key for key in keys if key not in missing])
            self.watch("miss", missing)

    def sweep(self, missing: Collection[ExpertKey]) -> None:
        """Count experts that are missing beside those of the last request."""
        self.misses += len(missing)
        if self.watch:
            self.watch("miss", missing)

    def read_ahead(self, keys: Collection[ExpertKey]) -> None:
        """Count experts that are read before they are asked for."""
        self.prefetched += len(keys)
        self._ahead.update(keys)
        if self.watch:
            self.watch("ahead", keys)

    def forget(self, key: ExpertKey) -> None:
        """An expert is not held any more: if it comes again, it is read again."""
        self._ahead.discard(key)

    def snapshot(self) -> CacheStats:
        """Return what was counted so far."""
        return CacheStats(self.hits, self.misses, self.read_bytes, self.prefetched)
