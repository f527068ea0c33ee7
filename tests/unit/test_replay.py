"""Replay: both versions agree, Belady's is the best there is, and bytes are counted right."""

from __future__ import annotations

from functools import partial
from itertools import combinations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from localmoe.cache.frequency import Static
from localmoe.cache.policies import MakePolicy
from localmoe.cache.policy_table import POLICIES
from localmoe.errors import SettingsError
from localmoe.lab.bound import Belady, next_use_ranks, uniform_hit_rate
from localmoe.lab.layout import least_slots, shared_layout, split_layout
from localmoe.lab.ranked_replay import BELADY, ranks_of, replay_ranks
from localmoe.lab.replay import HIT, MISS, NO_REQUEST, NOTHING, replay, without_repeats
from localmoe.prediction.trace import Trace, made_up_layer

LEARNED = 20
RANKED = ("lru", "lfu", "lrfu", "static", BELADY)


def a_trace(seed: int, n_tokens: int = 120, n_layers: int = 3, fill: bool = False) -> Trace:
    """Return skewed routing in bursts; two sizes of experts; `fill`: the last layer uses fewer."""
    rng = np.random.default_rng(seed)
    weights = 1 / (1 + np.arange(9.0))
    rows = [
        [rng.permutation(9)[:2] if rng.random() < 0.3 else
         rng.choice(9, 2, replace=False, p=weights / weights.sum()) for _ in range(n_layers)]
        for _ in range(n_tokens)
    ]  # fmt: skip
    routing = np.array(rows, np.int32)
    if fill:
        routing[:, -1, 1] = routing[:, -1, 0]
    used = [2] * (n_layers - 1) + [1 if fill else 2]
    layers = tuple(
        made_up_layer(n + 1, 9, used[n], (4 if n == 1 else 3, 2)) for n in range(n_layers)
    )
    numbers = tuple(layer.layer for layer in layers)
    return without_repeats(Trace(numbers, 9, routing, moe_layers=layers))


def policy(name: str, trace: Trace) -> MakePolicy:
    if name == BELADY:
        return partial(Belady, trace=trace, ranks=next_use_ranks(trace))
    return partial(Static, learned_tokens=LEARNED) if name == "static" else POLICIES[name]


@pytest.mark.parametrize("name", RANKED)
@pytest.mark.parametrize("fill", [False, True])
def test_the_compiled_replay_is_that_of_the_policies(name: str, fill: bool) -> None:
    pytest.importorskip("numba")
    trace = a_trace(4, fill=fill)
    ranks = ranks_of(name, trace, LEARNED)
    assert ranks is not None
    for slots in (4, 7, 13, 27):
        for layout in (shared_layout(trace, slots), split_layout(trace, max(slots, 6))):
            plain = replay(trace, layout, policy(name, trace))
            assert np.array_equal(plain, replay_ranks(trace, layout, ranks)), (slots, layout)


def test_ranks_that_slots_decide_are_not_known_beforehand() -> None:
    pytest.importorskip("numba")
    assert ranks_of("slru", a_trace(1), LEARNED) is None


def test_what_is_named_twice_is_asked_for_once() -> None:
    trace = without_repeats(Trace((0,), 4, np.array([[[1, 1, 0]], [[1, 0, 1]]], np.int32)))
    assert trace.routing.tolist() == [[[1, NO_REQUEST, 0]], [[1, 0, NO_REQUEST]]]
    outcome = replay(trace, shared_layout(trace, 3), POLICIES["lru"])
    assert outcome.tolist() == [[[MISS, NOTHING, MISS]], [[HIT, HIT, NOTHING]]]


def fewest_misses(trace: Trace, slots: int) -> int:
    """Try everything that may be held after each step: those demanded, and any of the others."""
    steps = [
        frozenset((layer, int(e)) for e in row)
        for token in trace.routing
        for layer, row in enumerate(token)
    ]
    best = {frozenset(): 0}
    for wanted in steps:
        after: dict[frozenset[tuple[int, int]], int] = {}
        for held, misses in best.items():
            others, n = held - wanted, misses + len(wanted - held)
            for keep in range(min(len(others), slots - len(wanted)) + 1):
                for kept in combinations(sorted(others), keep):
                    state = wanted | frozenset(kept)
                    after[state] = min(after.get(state, n), n)
        best = after
    return min(best.values())


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.lists(st.permutations(range(4)).map(lambda p: p[:2]), min_size=2, max_size=2),
        min_size=1,
        max_size=6,
    ),
    slots=st.integers(2, 5),
)
def test_nothing_misses_less_than_belady(rows: list[list[list[int]]], slots: int) -> None:
    trace = Trace((0, 1), 4, np.array(rows, np.int32))
    outcome = replay(trace, shared_layout(trace, slots), policy(BELADY, trace))
    assert int((outcome == MISS).sum()) == fewest_misses(trace, slots)


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_lies_below_the_bound_and_hits_all_when_all_fit(name: str) -> None:
    trace = a_trace(7)
    for slots in (6, 12, 20):
        layout = shared_layout(trace, slots)
        bound = int((replay(trace, layout, policy(BELADY, trace)) == HIT).sum())
        assert int((replay(trace, layout, policy(name, trace)) == HIT).sum()) <= bound
    everything = replay(trace, shared_layout(trace, 27), policy(name, trace))
    assert int((everything == MISS).sum()) == len(
        {(at, int(e)) for at in range(3) for e in trace.routing[:, at].ravel()}
    )


def test_slots_are_shared_out_by_size_and_too_few_are_refused() -> None:
    trace = a_trace(1)
    assert [len(group) for group in shared_layout(trace, 9).groups] == [2, 1]
    assert sum(shared_layout(trace, 9).slots) == 9
    assert split_layout(trace, 9).slots == (3, 3, 3)
    assert least_slots(trace) == 4
    with pytest.raises(SettingsError, match="larger size"):
        shared_layout(trace, 3)


def test_routing_without_a_pattern_finds_what_its_share_is() -> None:
    rng = np.random.default_rng(0)
    rows = [[rng.permutation(16)[:2] for _ in range(4)] for _ in range(1500)]
    trace = Trace((0, 1, 2, 3), 16, np.array(rows, np.int32))
    outcome = replay(trace, shared_layout(trace, 32), POLICIES["lfu"])
    assert uniform_hit_rate(trace, 32) == 0.5
    assert np.mean(outcome[200:] == HIT) == pytest.approx(0.5, abs=0.03)
