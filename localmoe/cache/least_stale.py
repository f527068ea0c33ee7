"""Evicts what its layer did not use the last time it came by."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from localmoe.cache.policies import Uses
from localmoe.cache.ranked import token_rows
from localmoe.weights.catalog import ExpertKey, MoeLayer

Ints = npt.NDArray[np.int64]


class LeastStale:
    """Evicts the stale first: what its layer passed over longest. Of equals, by the way there.

    Layers come by in turn, so what is needed last is what lies just behind: of experts that were
    passed over equally often, the one whose layer comes by last goes, and of one layer's the one
    that was used longest ago. As layers pass, the order of experts that were not demanded changes.
    """

    keeps_order = False

    def __init__(self, layers: Sequence[MoeLayer]) -> None:
        n_layers, width = len(layers), max(layer.n_experts for layer in layers)
        self._rows = {layer.layer: row for row, layer in enumerate(layers)}
        self._numbers = [layer.layer for layer in layers]
        self._used = [max(1, layer.n_experts_used) for layer in layers]
        self._tokens = np.zeros(n_layers, np.int64)  # that each layer has seen
        self._last = np.full((n_layers, width), -1, np.int64)  # the token of the last use
        self._held = np.zeros((n_layers, width), bool)
        self._here = n_layers - 1

    def demand(self, layer: int, ids: Sequence[int]) -> None:
        """Note which token used them, and that the layer came by."""
        row = self._rows[layer]
        self._here = row
        for experts in token_rows(ids, self._used[row]):
            self._last[row, list(experts)] = self._tokens[row]
            self._tokens[row] += 1

    def insert(self, key: ExpertKey) -> None:
        """Hold an expert."""
        self._held[self._rows[key.layer], key.expert] = True

    def remove(self, key: ExpertKey) -> None:
        """Hold an expert no longer."""
        at = self._rows[key.layer], key.expert
        if not self._held[at]:
            raise KeyError(key)
        self._held[at] = False

    def victim(self, pinned: Container[ExpertKey]) -> ExpertKey | None:
        """Return the stalest expert that is not pinned."""
        flat = np.flatnonzero(self._held)
        staleness = self._staleness(flat)
        while len(flat):
            at = int(np.argmax(staleness))
            key = self._key(int(flat[at]))
            if key not in pinned:
                return key
            flat, staleness = np.delete(flat, at), np.delete(staleness, at)
        return None

    def candidates(self, count: int) -> list[ExpertKey]:
        """Return the stalest experts, the very stalest at the front."""
        flat = np.flatnonzero(self._held)
        order = np.argsort(-self._staleness(flat), kind="stable")[:count]
        return [self._key(int(at)) for at in flat[order]]

    def settle(self) -> None:
        """Nothing is put off."""

    def uses(self) -> Mapping[int, Uses]:
        """Return nothing: uses are not counted."""
        return {}

    def _staleness(self, flat: Ints) -> Ints:
        """Return how often each was passed over, then the way to its layer, as one number."""
        n_layers = len(self._numbers)
        rows = flat // self._last.shape[1]
        passed = self._tokens[rows] - 1 - self._last.ravel()[flat]
        ways = (rows - self._here - 1) % n_layers
        stale: Ints = passed * n_layers + ways
        return stale

    def _key(self, flat: int) -> ExpertKey:
        row, expert = divmod(flat, self._last.shape[1])
        return ExpertKey(self._numbers[row], expert)
