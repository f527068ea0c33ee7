"""Guesses of what a later layer will choose, and how they turn out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from localmoe.prediction.router import Floats, Router
from localmoe.prediction.trace import RANKS_BEYOND

Product = Callable[[int, Floats], Floats]
"""A layer's router matrix times a state, float32 [D] -> [E]."""

_EAGER_TOKENS = 48
"""So long the correction learns from every token, then from every fourth: it costs time."""
_MEMORY_TOKENS = 128


@dataclass(frozen=True)
class Guess:
    """The experts that a layer is expected to choose, the surest first."""

    layer: int
    experts: tuple[int, ...]
    scores: Floats
    """The router's results for the state of another layer, not corrected: [E]."""


class Guesses:
    """The router of a later layer, applied to the state before an earlier one's experts.

    What lies between the two (experts, attention) moves the state, and its average effect on each
    expert's score is learned: that correction is worth a third of all wrong guesses.
    """

    def __init__(self, layers: Sequence[int], used: int, product: Product) -> None:
        """`layers` in the order in which they are computed; a token uses `used` experts."""
        self._at = {layer: place for place, layer in enumerate(layers)}
        self._layers, self._product = tuple(layers), product
        self.count = used + RANKS_BEYOND
        """How many experts a guess ranks, where a layer has so many."""
        self._routers: dict[int, Router] = {}
        self._ratios: dict[tuple[int, int], Floats] = {}
        self._corrections: dict[tuple[int, int], Floats] = {}
        self._learned: dict[tuple[int, int], int] = {}

    def knows(self, layer: int) -> bool:
        """Whether a layer's router has been seen."""
        return layer in self._routers

    def add(self, layer: int, router: Router) -> None:
        """Remember a layer's router."""
        self._routers[layer] = router

    def target(self, layer: int, distance: int) -> int | None:
        """Return the layer so many MoE layers later, if there is one whose router is known."""
        place = self._at[layer] + distance
        later = self._layers[place] if place < len(self._layers) else None
        return later if later in self._routers else None

    def guess(self, layer: int, later: int, state: Floats) -> Guess:
        """Tell what a later layer chooses from the normed state before a layer's experts, [D]."""
        pair = layer, later
        if pair not in self._ratios:
            self._ratios[pair] = _ratio(self._routers[later].norm, self._routers[layer].norm)
        scores = self._product(later, state * self._ratios[pair])
        correction = self._corrections.get(pair)
        ranked = self._routers[later].choice(scores if correction is None else scores + correction)
        count = min(self.count, len(ranked))
        best = ranked.argpartition(-count)[-count:]
        order = best[ranked[best].argsort()[::-1]]
        return Guess(later, tuple(order.tolist()), scores)

    def learn(self, layer: int, guess: Guess, probabilities: Floats) -> None:
        """Correct later guesses by what the router of `guess.layer` really made, [E]."""
        pair = layer, guess.layer
        count = self._learned.get(pair, 0) + 1
        self._learned[pair] = count
        if count > _EAGER_TOKENS and count % 4:
            return
        router = self._routers[guess.layer]
        wrong = router.scores(probabilities) - guess.scores
        if router.activation == "softmax":
            wrong -= wrong.mean()
        before = self._corrections.get(pair)
        if before is None:
            self._corrections[pair] = wrong
        else:
            before += (wrong - before) / np.float32(min(count, _MEMORY_TOKENS))


def _ratio(later: Floats, earlier: Floats) -> Floats:
    """Return what turns a state normed for one layer into one for another; 0 where it is lost."""
    smallest = 1e-4 * np.abs(earlier).max()
    kept = np.abs(earlier) > smallest
    return np.where(kept, later / np.where(kept, earlier, 1), 0).astype(np.float32)
