"""Routing that was made up: as much of it repeats as in trained models, the rest is chance."""

from __future__ import annotations

import numpy as np

from localmoe.planning.hit_rate import REPEATED_SHARE
from localmoe.prediction.trace import Trace, made_up_layer


def modelled_trace(
    n_layers: int, n_experts: int, n_experts_used: int, n_tokens: int, *, seed: int = 0
) -> Trace:
    """Return a trace in which a token uses some experts of the one before, layer by layer.

    Each of them is used again with the probability that was measured of trained models, if that is
    above chance. No expert is more popular than another: real routing is kinder to a cache.
    """
    rng = np.random.default_rng(seed)
    routing = np.empty((n_tokens, n_layers, n_experts_used), np.int32)
    chance = n_experts_used / n_experts
    again = max(0.0, (REPEATED_SHARE - chance) / (1 - chance)) if chance < 1 else 0.0
    for layer in range(n_layers):
        last = rng.permutation(n_experts)[:n_experts_used]
        for token in range(n_tokens):
            kept = last[rng.random(n_experts_used) < again]
            others = rng.permutation(n_experts)
            fresh = others[~np.isin(others, kept)][: n_experts_used - len(kept)]
            last = np.concatenate([kept, fresh])
            routing[token, layer] = last
    layers = tuple(made_up_layer(n, n_experts, n_experts_used) for n in range(n_layers))
    return Trace(tuple(range(n_layers)), n_experts, routing, moe_layers=layers, model="modelled")
