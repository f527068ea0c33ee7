"""Replays what is evicted by ranks that follow from the trace alone: compiled, for long traces."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt

from localmoe.cache.frequency import (
    LFU_HALF_LIFE_TOKENS,
    LRFU_HALF_LIFE_TOKENS,
    smooth,
    stepwise,
)
from localmoe.lab.layout import Layout
from localmoe.lab.replay import Outcome
from localmoe.prediction.trace import Trace

Floats = npt.NDArray[np.float64]
BELADY = "belady"


def is_compiled() -> bool:
    """Whether numba is there: the extra `lab` brings it."""
    return find_spec("numba") is not None


def ranks_of(name: str, trace: Trace, learned_tokens: int) -> Floats | None:
    """Return the ranks [T, L, K] by which a policy evicts; None where slots decide them, too.

    `trace` is one `without_repeats`; `learned_tokens` is what a static choice is learned from.
    """
    from localmoe.lab import kernels

    routing, n_experts = np.ascontiguousarray(trace.routing), trace.n_experts
    makers: dict[str, Callable[[], Floats]] = {
        "lru": lambda: np.zeros(routing.shape),
        "lfu": lambda: kernels.decayed_ranks(routing, n_experts, stepwise(LFU_HALF_LIFE_TOKENS)),
        "lrfu": lambda: kernels.decayed_ranks(routing, n_experts, smooth(LRFU_HALF_LIFE_TOKENS)),
        "static": lambda: kernels.counted_ranks(routing, n_experts, learned_tokens),
        BELADY: lambda: kernels.next_use_ranks(routing, n_experts),
    }
    make = makers.get(name)
    return make() if make else None


def replay_ranks(trace: Trace, layout: Layout, ranks: Floats) -> Outcome:
    """Return what each request finds where the lowest rank goes first."""
    from localmoe.lab.kernels import replay_ranked

    outcome: Outcome = replay_ranked(
        np.ascontiguousarray(trace.routing),
        trace.n_experts,
        layout.group_of_layer(trace.layers),
        np.array(layout.slots, np.int64),
        ranks,
    )
    return outcome
