"""Every policy at every size of cache: what would have been found, and what read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from localmoe.cache.frequency import Static
from localmoe.cache.policies import MakePolicy
from localmoe.cache.policy_table import POLICIES
from localmoe.lab.bound import Belady, next_use_ranks, uniform_hit_rate
from localmoe.lab.layout import Layout, shared_layout, split_layout
from localmoe.lab.ranked_replay import BELADY, Floats, is_compiled, ranks_of, replay_ranks
from localmoe.lab.replay import HIT, MISS, Outcome, replay, without_repeats
from localmoe.lab.speed import Machine
from localmoe.prediction.score import warm_up_tokens
from localmoe.prediction.trace import Trace
from localmoe.settings import Progress, available_threads

PER_LAYER = "/layer"
"""Behind the name of a policy: each layer has slots of its own."""
Answer = dict[str, Any]


@dataclass(frozen=True)
class GridRequest:
    """`policies` by name, such as lru, or lru/layer; `slots` are the sizes of the cache."""

    policies: tuple[str, ...]
    slots: tuple[int, ...]
    machine: Machine | None = None
    """Whose speed is told, beside what is found."""


def measure_grid(
    trace: Trace, request: GridRequest, progress: Progress | None = None
) -> list[Answer]:
    """Return an answer for each size. Raises SettingsError where one is too small.

    The first quarter of the tokens fills the caches, and teaches what learns: it does not count.
    """
    replays = _Replays(without_repeats(trace), request.machine)
    nbytes = trace.mean_expert_nbytes
    names = (BELADY, *request.policies)
    answers: list[Answer] = [
        {
            "share": slots / trace.n_experts_total,
            "slots": slots,
            "bytes": int(slots * nbytes) if nbytes else None,
            "uniform_hit_rate": uniform_hit_rate(trace, slots),
            "policies": {},
        }
        for slots in request.slots
    ]
    for at, name in enumerate(names):
        if progress:
            progress(f"replaying {name}", at, len(names))
        for answer, found in zip(answers, replays.run(name, request.slots), strict=True):
            answer["policies"][name] = found
    return answers


class _Replays:
    """Replays one trace over and over."""

    def __init__(self, trace: Trace, machine: Machine | None) -> None:
        self.machine = machine
        self.trace, self.first = trace, warm_up_tokens(trace)
        self.nbytes = np.array([layer.expert_nbytes for layer in trace.sized_layers()])

    def run(self, name: str, sizes: Sequence[int]) -> list[Answer | None]:
        """Return the figures of a policy at each size; None where layers get less than a token."""
        run = self._runner(name.removesuffix(PER_LAYER))
        if not name.endswith(PER_LAYER):
            with ThreadPoolExecutor(available_threads()) as pool:  # what is compiled runs beside
                outcomes = pool.map(run, [shared_layout(self.trace, slots) for slots in sizes])
                return [self._figures(outcome) for outcome in outcomes]
        least = sum(layer.n_experts_used for layer in self.trace.sized_layers())
        return [
            self._figures(run(split_layout(self.trace, slots))) if slots >= least else None
            for slots in sizes
        ]

    def _runner(self, policy: str) -> Callable[[Layout], Outcome]:
        """Return what replays a policy, compiled if it can be; what it needs is made once."""
        ranks: Floats | None = ranks_of(policy, self.trace, self.first) if is_compiled() else None
        if ranks is not None:
            return partial(_compiled, self.trace, ranks)
        make: MakePolicy
        if policy == BELADY:
            make = partial(Belady, trace=self.trace, ranks=next_use_ranks(self.trace))
        elif policy == "static":
            make = partial(Static, learned_tokens=self.first)
        else:
            make = {str(name): make for name, make in POLICIES.items()}[policy]
        return lambda layout: replay(self.trace, layout, make)

    def _figures(self, outcome: Outcome) -> Answer:
        scored = outcome[self.first :]
        hits = int((scored == HIT).sum())
        by_step = (scored == MISS).sum(2)  # [T, L]
        misses = by_step.sum(0)
        n_missed, tokens = int(misses.sum()), len(scored)
        known = bool(self.trace.moe_layers)
        machine = self.machine
        speed = {"tokens_per_second": machine.tokens_per_second(by_step)} if machine else {}
        return {
            "hit_rate": hits / (hits + n_missed),
            "misses_per_token": n_missed / tokens,
            "read_bytes_per_token": float(misses @ self.nbytes / tokens) if known else None,
            "layer_misses_per_token": (misses / tokens).tolist(),
            **speed,
        }


def _compiled(trace: Trace, ranks: Floats, layout: Layout) -> Outcome:
    return replay_ranks(trace, layout, ranks)
