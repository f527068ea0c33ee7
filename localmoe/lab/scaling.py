"""A trace, as if another model had made it, that uses experts again after as long.

Kept is how recently the experts of a layer were used before they are used again: an expert is
named by its place in the order of last use. Places are stretched to the other number of experts;
which layers behave alike, and what experts mean, is lost.
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


def scaled(trace: Trace, shape: Shape) -> Trace:
    """Return a trace of the shape's layers and experts that comes back to them as this one does."""
    places = recency_places(trace)
    rng = np.random.default_rng(0)
    n_tokens, n_layers, used = places.shape
    routing = np.zeros((n_tokens, shape.n_layers, shape.n_experts_used), np.int32)
    for layer in range(shape.n_layers):
        source = places[:, layer * n_layers // shape.n_layers]
        order = rng.permutation(shape.n_experts).tolist()
        for token in range(n_tokens):
            drawn = rng.choice(source[token], 4 * shape.n_experts_used)
            wanted = _stretched(drawn + rng.random(len(drawn)), used, trace.n_experts, shape)
            chosen = [order[place] for place in wanted]
            routing[token, layer] = chosen
            for expert in chosen:
                order.remove(expert)
            order[:0] = chosen
    layers = tuple(
        made_up_layer(n, shape.n_experts, shape.n_experts_used, (shape.expert_nbytes,))
        for n in range(shape.n_layers)
    )
    numbers = tuple(range(shape.n_layers))
    return Trace(numbers, shape.n_experts, routing, moe_layers=layers, model=shape.name)


def _stretched(places: Floats, used: int, n_experts: int, shape: Shape) -> list[int]:
    """Map places to as many different ones as the shape uses; the last token's stay the first."""
    rest, its_rest = n_experts - used, shape.n_experts - shape.n_experts_used
    recent = places < used
    near = places / used * shape.n_experts_used
    far = shape.n_experts_used + (places - used) / max(rest, 1) * its_rest
    found = np.minimum(np.where(recent, near, far), shape.n_experts - 1).astype(int)
    wanted = list(dict.fromkeys(found.tolist()))[: shape.n_experts_used]
    spare = (place for place in range(shape.n_experts) if place not in set(wanted))
    return wanted + [next(spare) for _ in range(shape.n_experts_used - len(wanted))]
