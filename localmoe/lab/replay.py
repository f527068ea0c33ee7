"""Replays a trace through policies: the very ones of the engine, one step of a layer at a time.

This is the plain version. Policies whose ranks follow from the trace alone have a compiled twin in
`ranked_replay`, which a test holds to the same outcome.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from localmoe.cache.policies import MakePolicy, Policy
from localmoe.lab.layout import Layout
from localmoe.prediction.trace import Numbers, Trace
from localmoe.weights.catalog import ExpertKey

NO_REQUEST = -1
MISS, HIT, NOTHING = 0, 1, 2
"""What became of a request; NOTHING where a row has an expert a second time, or a filler."""
Outcome = npt.NDArray[np.uint8]
"""[T, L, K]"""
OnToken = Callable[[int], None]


def without_repeats(trace: Trace) -> Trace:
    """Replace what a token names twice in a layer by NO_REQUEST."""
    order = np.argsort(trace.routing, axis=2, kind="stable")
    in_order = np.take_along_axis(trace.routing, order, axis=2)
    repeated = np.zeros(trace.routing.shape, bool)
    repeated[:, :, 1:] = in_order[:, :, 1:] == in_order[:, :, :-1]
    if not repeated.any():
        return trace
    routing: Numbers = trace.routing.copy()
    back = np.zeros_like(repeated)
    np.put_along_axis(back, order, repeated, axis=2)
    routing[back] = NO_REQUEST
    return replace(trace, routing=routing)


def replay(
    trace: Trace, layout: Layout, make: MakePolicy, on_token: OnToken = lambda _: None
) -> Outcome:
    """Return what each request of a trace `without_repeats` finds, from empty slots on."""
    caches = [_Slots(make(group), n) for group, n in zip(layout.groups, layout.slots, strict=True)]
    places = layout.group_of_layer(trace.layers)
    steps = [(layer, caches[at]) for layer, at in zip(trace.layers, places, strict=True)]
    outcome = np.full(trace.routing.shape, NOTHING, np.uint8)
    for token, rows in enumerate(trace.routing.tolist()):
        for place, (layer, cache) in enumerate(steps):
            ids = rows[place]
            found = cache.demand(layer, [expert for expert in ids if expert != NO_REQUEST])
            outcome[token, place] = [found.get(expert, NOTHING) for expert in ids]
        on_token(token + 1)
    return outcome


class _Slots:
    """A group of slots without bytes: what `ExpertCache.acquire` does, step by step."""

    def __init__(self, policy: Policy, slots: int) -> None:
        self._policy, self._free = policy, slots
        self._held: set[ExpertKey] = set()

    def demand(self, layer: int, ids: list[int]) -> dict[int, int]:
        """Bring experts in; return for each whether it was there."""
        policy, held = self._policy, self._held
        keys = [ExpertKey(layer, expert) for expert in ids]
        missing = [key for key in keys if key not in held]
        policy.demand(layer, ids)
        for key in missing:
            if self._free:
                self._free -= 1
            else:
                victim = policy.victim(keys)
                assert victim is not None  # a layout has room for a step
                policy.remove(victim)
                held.discard(victim)
            policy.insert(key)
            held.add(key)
        gone = set(missing)
        return {key.expert: MISS if key in gone else HIT for key in keys}
