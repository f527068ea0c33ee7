"""Who is next: clients take turns, however much each of them asks for."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class QueueFullError(Exception):
    """No more requests may wait."""


class FairQueue(Generic[Item]):
    """Items by client, in turn: one of each client, in the order in which they came. Thread safe.

    What is `urged` is of no client, comes first, and is not counted.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: OrderedDict[str, deque[Item]] = OrderedDict()
        self._urgent: deque[Item] = deque()
        self._changed = threading.Condition()
        self._is_closed = False

    def __len__(self) -> int:
        with self._changed:
            return self._length

    @property
    def _length(self) -> int:
        return sum(map(len, self._items.values()))

    def put(self, client: str, item: Item) -> None:
        """Let an item wait. Raises QueueFullError."""
        with self._changed:
            if self._is_closed or self._length >= self._limit:
                raise QueueFullError
            self._items.setdefault(client, deque()).append(item)
            self._changed.notify()

    def urge(self, item: Item) -> None:
        """Let an item come before all others."""
        with self._changed:
            self._urgent.append(item)
            self._changed.notify()

    def urgent(self) -> Item | None:
        """Return an urged item, if there is one; do not wait."""
        with self._changed:
            return self._urgent.popleft() if self._urgent else None

    def get(self) -> Item | None:
        """Wait for the next item; None: the queue is closed and empty."""
        with self._changed:
            while not (self._urgent or self._items or self._is_closed):
                self._changed.wait()
            if self._urgent:
                return self._urgent.popleft()
            return self._next()

    def remove(self, client: str, item: Item) -> bool:
        """Take an item back; return whether it was still waiting."""
        with self._changed:
            waiting = self._items.get(client)
            if waiting is None or item not in waiting:
                return False
            waiting.remove(item)
            if not waiting:
                del self._items[client]
            return True

    def close(self) -> list[Item]:
        """Let nothing more in; return what was waiting."""
        with self._changed:
            self._is_closed = True
            waiting = [item for items in self._items.values() for item in items]
            self._items.clear()
            self._changed.notify_all()
            return waiting

    def _next(self) -> Item | None:
        if not self._items:
            return None
        client, waiting = next(iter(self._items.items()))
        item = waiting.popleft()
        if waiting:
            self._items.move_to_end(client)
        else:
            del self._items[client]
        return item
