"""Which expert to evict. Pure: no I/O, no clock, no memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Hashable
from typing import Generic, Protocol, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Policy(Protocol[Key]):
    """Keeps the order of eviction of the keys that a cache holds."""

    def insert(self, key: Key) -> None:
        """Add a key that was just demanded."""
        ...

    def touch(self, key: Key) -> None:
        """Note that a held key was demanded again."""
        ...

    def remove(self, key: Key) -> None:
        """Forget a held key."""
        ...

    def victim(self, pinned: Container[Key]) -> Key | None:
        """Return the key to evict next that is not pinned; None if all are. Does not remove it."""
        ...


class Lru(Generic[Key]):
    """Evicts the key that was demanded longest ago."""

    def __init__(self) -> None:
        self._order: OrderedDict[Key, None] = OrderedDict()

    def insert(self, key: Key) -> None:
        """Add a key as the most recent one."""
        self._order[key] = None

    def touch(self, key: Key) -> None:
        """Make a held key the most recent one."""
        self._order.move_to_end(key)

    def remove(self, key: Key) -> None:
        """Forget a held key."""
        del self._order[key]

    def victim(self, pinned: Container[Key]) -> Key | None:
        """Return the least recent key that is not pinned."""
        return next((key for key in self._order if key not in pinned), None)
