"""The best that any policy could do: Belady's, which knows the future."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from localmoe.cache.ranked import Ranked
from localmoe.lab.replay import NO_REQUEST
from localmoe.prediction.trace import Trace
from localmoe.weights.catalog import ExpertKey, MoeLayer

Floats = npt.NDArray[np.float64]


def next_use_ranks(trace: Trace) -> Floats:
    """Return the rank of each request [T, L, K]: the sooner it comes again, the higher.

    `trace` is one `without_repeats`.
    """
    n_tokens, n_layers, used = trace.routing.shape
    requests = trace.routing.ravel()
    step = np.repeat(np.arange(n_tokens * n_layers), used)
    keys = (step % n_layers) * trace.n_experts + requests
    keys[requests == NO_REQUEST] = -1
    order = np.argsort(keys, kind="stable")
    ranks = np.full(len(keys), -np.inf)
    same = (keys[order[1:]] == keys[order[:-1]]) & (keys[order[1:]] >= 0)
    ranks[order[:-1][same]] = -step[order[1:][same]]
    return ranks.reshape(trace.routing.shape)


class Belady(Ranked):
    """Evicts the expert that comes again last. All experts of a group have the same size.

    Slots hold one size each, so evicting fewest is reading the fewest bytes. What is demanded must
    be held, and a step's experts all at once: under these rules nothing reads less.
    """

    def __init__(self, layers: Sequence[MoeLayer], trace: Trace, ranks: Floats) -> None:
        """`ranks` are those of the whole trace, from `next_use_ranks`."""
        super().__init__(layers)
        self._ranks: Mapping[int, Floats] = {
            layer: ranks[:, at] for at, layer in enumerate(trace.layers)
        }
        self._routing = {layer: trace.routing[:, at] for at, layer in enumerate(trace.layers)}
        self._known: dict[ExpertKey, float] = {}

    def learn(self, layer: int, token: int, experts: Sequence[int]) -> None:
        """Look up when each comes again."""
        for expert in experts:
            at = int(np.argmax(self._routing[layer][token] == expert))
            self._known[ExpertKey(layer, expert)] = float(self._ranks[layer][token, at])

    def rank(self, key: ExpertKey) -> float:
        """Return when it comes again, as of its last use."""
        return self._known[key]


def uniform_hit_rate(trace: Trace, slots: int) -> float:
    """Return what routing without any pattern would find, whatever the policy: its share."""
    return min(1.0, slots / trace.n_experts_total)
