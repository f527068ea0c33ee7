"""Policies of two queues: an expert has to be used again before it can push out proven ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Mapping, Sequence
from itertools import chain, islice

from localmoe.cache.policies import Uses
from localmoe.weights.catalog import ExpertKey, MoeLayer

PROTECTED_SHARE = 0.8
"""Of what Slru holds: so much may be protected."""
NEW_SHARE = 0.25
"""Of what TwoQueue holds: so much may be new before it is the next to go."""
REMEMBERED_SHARE = 0.5
"""As a share of what TwoQueue holds: so many that went as new ones are remembered."""


class _Queues:
    """Two queues of held experts, those to evict first at the front of each."""

    keeps_order = False

    def __init__(self, layers: Sequence[MoeLayer]) -> None:
        self._first: OrderedDict[ExpertKey, None] = OrderedDict()
        self._second: OrderedDict[ExpertKey, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def remove(self, key: ExpertKey) -> None:
        """Hold an expert no longer."""
        del (self._first if key in self._first else self._second)[key]

    def settle(self) -> None:
        """Nothing is put off."""

    def uses(self) -> Mapping[int, Uses]:
        """Return nothing: uses are not counted."""
        return {}


class Slru(_Queues):
    """Evicts the oldest of those used once since they came; the others are protected.

    Where too many are protected, the one used longest ago is on probation again, as the newest.
    """

    def demand(self, layer: int, ids: Sequence[int]) -> None:
        """Protect the held ones."""
        for expert in dict.fromkeys(ids):
            key = ExpertKey(layer, expert)
            if key in self._second:
                self._second.move_to_end(key)
            elif key in self._first:
                del self._first[key]
                self._second[key] = None
                if len(self._second) > int(PROTECTED_SHARE * len(self)):
                    oldest, _ = self._second.popitem(last=False)
                    self._first[oldest] = None

    def insert(self, key: ExpertKey) -> None:
        """Hold an expert, on probation."""
        self._first[key] = None

    def victim(self, pinned: Container[ExpertKey]) -> ExpertKey | None:
        """Return the oldest one on probation, then of the protected, that is not pinned."""
        order = chain(self._first, self._second)
        return next((key for key in order if key not in pinned), None)

    def candidates(self, count: int) -> list[ExpertKey]:
        """Return those on probation, then the protected ones, the oldest of each first."""
        return list(islice(chain(self._first, self._second), count))


class TwoQueue(_Queues):
    """Evicts new experts in the order in which they came, as long as there are many of them.

    One that is demanded again soon after it went that way is no new one any more: of these the one
    used longest ago goes, when new ones are few. Which queue is next depends on how many each has.
    """

    def __init__(self, layers: Sequence[MoeLayer]) -> None:
        super().__init__(layers)
        self._gone: OrderedDict[ExpertKey, None] = OrderedDict()

    def demand(self, layer: int, ids: Sequence[int]) -> None:
        """Make the held ones that are not new the most recent."""
        for expert in dict.fromkeys(ids):
            key = ExpertKey(layer, expert)
            if key in self._second:
                self._second.move_to_end(key)

    def insert(self, key: ExpertKey) -> None:
        """Hold an expert: as a new one, unless it went as such not long ago."""
        if key in self._gone:
            del self._gone[key]
            self._second[key] = None
        else:
            self._first[key] = None

    def remove(self, key: ExpertKey) -> None:
        """Hold an expert no longer; a new one is remembered for a while."""
        is_new = key in self._first
        super().remove(key)
        if is_new:
            self._gone[key] = None
            while len(self._gone) > max(1, int(REMEMBERED_SHARE * (len(self) + 1))):
                self._gone.popitem(last=False)

    def victim(self, pinned: Container[ExpertKey]) -> ExpertKey | None:
        """Return the next new one where they are many, else the next other one; none pinned."""
        queues = (self._first, self._second)
        order = chain(*(queues if self._is_new_next(*map(len, queues)) else queues[::-1]))
        return next((key for key in order if key not in pinned), None)

    def candidates(self, count: int) -> list[ExpertKey]:
        """Return the next to go if nothing came meanwhile."""
        news, others = list(self._first)[::-1], list(self._second)[::-1]
        order: list[ExpertKey] = []
        while len(order) < count and (news or others):
            is_new = not others or bool(news and self._is_new_next(len(news), len(others)))
            order.append((news if is_new else others).pop())
        return order

    @staticmethod
    def _is_new_next(n_new: int, n_others: int) -> bool:
        return n_new > int(NEW_SHARE * (n_new + n_others))
