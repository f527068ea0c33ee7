"""Policies that count uses: what was used least goes first, old uses weighing less."""

from __future__ import annotations

from collections.abc import Sequence
from math import frexp, ldexp

import numpy as np
import numpy.typing as npt

from localmoe.cache.ranked import Ranked
from localmoe.weights.catalog import ExpertKey, MoeLayer

LFU_HALF_LIFE_TOKENS = 512
LRFU_HALF_LIFE_TOKENS = 32
STATIC_LEARNED_TOKENS = 512


def stepwise(half_life_tokens: int) -> npt.NDArray[np.float64]:
    """Return the weight of a use by its token's place in a half-life: all alike, [H]."""
    return np.ones(half_life_tokens)


def smooth(half_life_tokens: int) -> npt.NDArray[np.float64]:
    """Return the weight of a use by its token's place in a half-life: rising to double, [H]."""
    weights: npt.NDArray[np.float64] = 2.0 ** (np.arange(half_life_tokens) / half_life_tokens)
    return weights


class Decayed(Ranked):
    """Sums up uses, each weighing half as much as one that came a half-life later.

    A sum is kept in units that double every half-life, so that it need not be touched as it ages;
    it is exact in any language that has IEEE doubles.
    """

    def __init__(self, layers: Sequence[MoeLayer], weights: npt.NDArray[np.float64]) -> None:
        super().__init__(layers)
        self._weights: list[float] = weights.tolist()
        self._sums: dict[ExpertKey, tuple[float, int]] = {}  # and in which half-life

    def learn(self, layer: int, token: int, experts: Sequence[int]) -> None:
        """Add a use to each expert's sum."""
        period, place = divmod(token, len(self._weights))
        for expert in experts:
            key = ExpertKey(layer, expert)
            total, since = self._sums.get(key, (0.0, period))
            self._sums[key] = ldexp(total, since - period) + self._weights[place], period

    def rank(self, key: ExpertKey) -> float:
        """Return something like the logarithm of the sum: as monotone, without its rounding."""
        total, period = self._sums.get(key, (0.0, 0))
        if not total:
            return float("-inf")
        mantissa, exponent = frexp(total)
        return period + exponent + mantissa


class Lfu(Decayed):
    """Evicts what was used least often; every half-life, all counts are halved."""

    def __init__(
        self, layers: Sequence[MoeLayer], half_life_tokens: int = LFU_HALF_LIFE_TOKENS
    ) -> None:
        super().__init__(layers, stepwise(half_life_tokens))


class Lrfu(Decayed):
    """Evicts what was used least, counting recent uses more: between Lru and Lfu."""

    def __init__(
        self, layers: Sequence[MoeLayer], half_life_tokens: int = LRFU_HALF_LIFE_TOKENS
    ) -> None:
        super().__init__(layers, smooth(half_life_tokens))


class Static(Ranked):
    """Counts uses in its first tokens, and never again: then the most used ones stay for good."""

    def __init__(
        self, layers: Sequence[MoeLayer], learned_tokens: int = STATIC_LEARNED_TOKENS
    ) -> None:
        super().__init__(layers)
        self._learned_tokens = learned_tokens
        self._counts: dict[ExpertKey, int] = {}

    def learn(self, layer: int, token: int, experts: Sequence[int]) -> None:
        """Count, while it is early enough."""
        if token < self._learned_tokens:
            for expert in experts:
                key = ExpertKey(layer, expert)
                self._counts[key] = self._counts.get(key, 0) + 1

    def rank(self, key: ExpertKey) -> float:
        """Return how often it was used in the first tokens."""
        return float(self._counts.get(key, 0))
