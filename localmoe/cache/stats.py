"""What an expert cache has done so far."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CacheStats:
    """Counters that only grow. A request is one distinct expert of one `acquire`."""

    hits: int = 0
    misses: int = 0
    read_bytes: int = 0
    """Bytes of experts read on demand, without alignment slack."""
    prefetched: int = 0
    """Experts whose reading ahead of demand was begun."""
