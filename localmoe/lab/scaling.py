"""A trace, as if another model had made it, that uses experts again after as long.

An expert is named by its place in its layer's order of last use. What is there more often than
chance would have it is the pattern: it is stretched to the other number of experts, and chance
gives the rest. Which experts are popular, and how one layer goes with another, is lost.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from localmoe.lab.shapes import Shape
from localmoe.prediction.trace import Numbers, Trace, made_up_layer

Floats = npt.NDArray[np.float64]


def recency_places(trace: Trace) -> Numbers:
    """Return for each request its place in its layer's order of last use, newest first, [T, L, K].

    What was never used counts in the order of numbers, behind all others.
    """
    n_tokens, n_layers, used = trace.routing.shape
    places = np.zeros((n_tokens, n_layers, used), np.int32)
    for at in range(n_layers):
        order = list(range(trace.n_experts))
        for token, experts in enumerate(trace.routing[:, at].tolist()):
            places[token, at] = [order.index(expert) for expert in experts]
            wanted = list(dict.fromkeys(experts))
            for expert in wanted:
                order.remove(expert)
            order[:0] = wanted
    return places


def pattern(places: Numbers, n_experts: int) -> tuple[float, Floats]:
    """Return how much of a layer's routing is a pattern, and how it spreads over places, [E].

    The rest is chance: as much as experts not used for long are still used, were it all of them.
    """
    found = np.bincount(places.ravel(), minlength=n_experts) / places.size
    oldest = found[-max(1, n_experts // 4) :].mean()
    chance = min(1.0, float(oldest) * n_experts)
    excess = np.maximum(found - chance / n_experts, 0)
    if excess.sum() == 0:
        return 0.0, np.full(n_experts, 1 / n_experts)
    return 1 - chance, excess / excess.sum()


def scaled(trace: Trace, shape: Shape) -> Trace:
    """Return a trace of the shape's layers and experts with as much pattern as this one has."""
    places = recency_places(trace)
    rng = np.random.default_rng(0)
    n_tokens, n_layers, used = places.shape
    routing = np.zeros((n_tokens, shape.n_layers, shape.n_experts_used), np.int32)
    for layer in range(shape.n_layers):
        share, spread = pattern(places[:, layer * n_layers // shape.n_layers], trace.n_experts)
        size = (n_tokens, 4 * shape.n_experts_used)
        drawn = rng.choice(trace.n_experts, size, p=spread) + rng.random(size)
        wanted = np.where(
            rng.random(size) < share,
            _stretched(drawn, used, trace.n_experts, shape),
            rng.integers(0, shape.n_experts, size),
        )
        routing[:, layer] = _followed(wanted, rng.permutation(shape.n_experts).tolist(), shape)
    layers = tuple(
        made_up_layer(n, shape.n_experts, shape.n_experts_used, (shape.expert_nbytes,))
        for n in range(shape.n_layers)
    )
    numbers = tuple(range(shape.n_layers))
    return Trace(numbers, shape.n_experts, routing, moe_layers=layers, model=shape.name)


def _stretched(places: Floats, used: int, n_experts: int, shape: Shape) -> Numbers:
    """Map places to the shape's: those of the token before to those of the token before."""
    rest, its_rest = max(1, n_experts - used), shape.n_experts - shape.n_experts_used
    near = places / used * shape.n_experts_used
    far = shape.n_experts_used + (places - used) / rest * its_rest
    found = np.where(places < used, near, far).astype(np.int32)
    return np.minimum(found, shape.n_experts - 1)


def _followed(wanted: Numbers, order: list[int], shape: Shape) -> list[list[int]]:
    """Name experts by their places in the order of last use, as many different ones as are used."""
    rows = []
    for places in wanted.tolist():
        different = list(dict.fromkeys((*places, *range(shape.n_experts_used))))
        chosen = [order[place] for place in different[: shape.n_experts_used]]
        for expert in chosen:
            order.remove(expert)
        order[:0] = chosen
        rows.append(chosen)
    return rows
