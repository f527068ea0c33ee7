"""A policy in which every expert gets a rank when it is used: the lowest goes first."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush, nsmallest

from localmoe.cache.policies import Uses
from localmoe.weights.catalog import ExpertKey, MoeLayer

_SPARE_ENTRIES = 64
"""So many outdated entries may lie in a queue that is otherwise empty."""


def token_rows(ids: Sequence[int], used: int) -> Iterator[Sequence[int]]:
    """Yield each token's experts, [K]; all of them at once where they are not K to a token."""
    if len(ids) % used:
        yield sorted(set(ids))
        return
    for start in range(0, len(ids), used):
        yield ids[start : start + used]


class Ranked:
    """Evicts the expert of the lowest rank; of equals, the one that was demanded longest ago.

    A subclass says what is learned from each token, and what rank follows. A rank may change
    only when its expert is used: so demands of others never change the order of those not demanded.
    """

    keeps_order = False

    def __init__(self, layers: Sequence[MoeLayer]) -> None:
        self._used = {layer.layer: max(1, layer.n_experts_used) for layer in layers}
        self._tokens = dict.fromkeys(self._used, 0)  # that each layer has seen
        self._places: dict[ExpertKey, tuple[float, int]] = {}
        self._queue: list[tuple[float, int, ExpertKey]] = []  # a heap with outdated entries
        self._clock = 0

    def learn(self, layer: int, token: int, experts: Sequence[int]) -> None:
        """Note what a token used; `token` counts those that the layer has seen before."""
        raise NotImplementedError

    def rank(self, key: ExpertKey) -> float:
        """Return an expert's rank as of its last use."""
        raise NotImplementedError

    def demand(self, layer: int, ids: Sequence[int]) -> None:
        """Learn from each token, and give those that are held their new ranks."""
        for experts in token_rows(ids, self._used[layer]):
            self.learn(layer, self._tokens[layer], experts)
            self._tokens[layer] += 1
        for expert in dict.fromkeys(ids):
            key = ExpertKey(layer, expert)
            if key in self._places:
                self._place(key)

    def insert(self, key: ExpertKey) -> None:
        """Hold an expert, at the rank that its past uses give it."""
        self._place(key)

    def remove(self, key: ExpertKey) -> None:
        """Hold an expert no longer."""
        del self._places[key]

    def victim(self, pinned: Container[ExpertKey]) -> ExpertKey | None:
        """Return the expert of the lowest rank that is not pinned."""
        queue, passed = self._queue, []
        while queue:
            rank, clock, key = queue[0]
            is_current = self._places.get(key) == (rank, clock)
            if is_current and key not in pinned:
                break
            entry = heappop(queue)
            if is_current:
                passed.append(entry)
        found = queue[0][2] if queue else None
        for entry in passed:
            heappush(queue, entry)
        return found

    def candidates(self, count: int) -> list[ExpertKey]:
        """Return the experts of the lowest ranks, the very lowest at the front."""
        entries = ((*place, key) for key, place in self._places.items())
        return [key for _, _, key in nsmallest(count, entries)]

    def settle(self) -> None:
        """Nothing is put off."""

    def uses(self) -> Mapping[int, Uses]:
        """Return nothing: ranks are no counts."""
        return {}

    def _place(self, key: ExpertKey) -> None:
        self._clock += 1
        place = self._places[key] = (self.rank(key), self._clock)
        heappush(self._queue, (*place, key))
        if len(self._queue) > 2 * len(self._places) + _SPARE_ENTRIES:
            self._queue = [(*current, held) for held, current in self._places.items()]
            heapify(self._queue)
