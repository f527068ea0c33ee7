"""What a run routed to, and what was guessed before: the material that predictors are scored on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from localmoe.weights.catalog import ExpertPart, Extent, MoeLayer

Numbers = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
PhaseName = Literal["decode", "prefill"]
"""How tokens came: one at a time, or many in a step."""
NO_GUESS = -1
RANKS_BEYOND = 2
"""How many more experts a guess ranks than a token uses."""


@dataclass(frozen=True)
class Trace:
    """T tokens through L MoE layers of E experts each, K of which each token uses."""

    layers: tuple[int, ...]
    n_experts: int
    routing: Numbers
    """[T, L, K]"""
    guesses: Mapping[str, Numbers] = field(default_factory=dict)
    """By predictor: [T, L, M] experts, the surest first, or NO_GUESS."""
    scores: Floats | None = None
    """What the router gave those that it chose, [T, L, K]; NaN where its form is not known."""
    moe_layers: tuple[MoeLayer, ...] = ()
    """What the model's catalog says of the layers; nothing where only numbers are known."""
    model: str = ""
    catalog: str = ""
    """The digest of the model's catalog."""
    phase: PhaseName = "decode"

    @property
    def n_experts_used(self) -> int:
        """K."""
        return int(self.routing.shape[2])

    @property
    def n_tokens(self) -> int:
        """T."""
        return len(self.routing)

    @property
    def mean_expert_nbytes(self) -> float | None:
        """Mean length of an expert; None where it is not known."""
        total = sum(layer.n_experts for layer in self.moe_layers)
        nbytes = sum(layer.n_experts * layer.expert_nbytes for layer in self.moe_layers)
        return nbytes / total if total else None

    @property
    def n_experts_total(self) -> int:
        """Number of (layer, expert) pairs."""
        return sum(layer.n_experts for layer in self.sized_layers())

    def sized_layers(self) -> tuple[MoeLayer, ...]:
        """Return the layers; where nothing is known of their experts, all are one byte long."""
        if self.moe_layers:
            return self.moe_layers
        return tuple(made_up_layer(n, self.n_experts, self.n_experts_used) for n in self.layers)

    def chosen(self) -> npt.NDArray[np.bool_]:
        """Return the routing as a table, [T, L, E]."""
        table = np.zeros((*self.routing.shape[:2], self.n_experts), bool)
        np.put_along_axis(table, self.routing.astype(np.int64), True, axis=2)
        return table


def made_up_layer(
    layer: int, n_experts: int, n_experts_used: int, part_nbytes: tuple[int, ...] = (1,)
) -> MoeLayer:
    """Return a layer that lies in no file, with parts of these lengths."""
    parts = tuple(ExpertPart("", Extent("", 0, n * n_experts), n) for n in part_nbytes)
    return MoeLayer(layer, n_experts, n_experts_used, parts)


def with_history(trace: Trace, count: int) -> Trace:
    """Add the predictors that need no hidden state, `count` guesses each.

    `previous_token`: what the token before used in this layer, then by frequency. `frequency`: what
    the layer has used most so far. `combined`, where the next layer's router is known: all three.
    """
    chosen = trace.chosen()
    seen = np.cumsum(chosen, axis=0).astype(np.float64) - chosen
    before = np.zeros_like(chosen)
    before[1:] = chosen[:-1]
    weights = {"previous_token": before + seen / (1 + len(chosen)), "frequency": seen}
    if "next_layer" in trace.guesses:
        weights["combined"] = _combined(trace, before, seen)
    guesses = {name: _best(weight, count) for name, weight in weights.items()}
    for guessed in guesses.values():
        guessed[0] = NO_GUESS
    return replace(trace, guesses={**trace.guesses, **guesses})


def _combined(
    trace: Trace, before: npt.NDArray[np.bool_], seen: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Weigh the next layer's router by rank, then the token before, then frequency: [T, L, E]."""
    guessed = trace.guesses["next_layer"]
    ranks = 1 - np.arange(guessed.shape[2]) / guessed.shape[2]
    weights = before / 2 + seen / (1 + len(seen)) / 4
    token, layer, rank = np.nonzero(guessed != NO_GUESS)
    weights[token, layer, guessed[token, layer, rank]] += ranks[rank]
    return weights


def _best(weights: npt.NDArray[np.float64], count: int) -> Numbers:
    order = np.argsort(-weights, axis=2, kind="stable")
    return order[:, :, :count].astype(np.int32)
