"""What every eviction policy promises, and for each one the order that is its own."""

from __future__ import annotations

import random
from collections.abc import Container
from typing import get_args

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from localmoe.cache.frequency import Lfu, Lrfu, Static
from localmoe.cache.least_stale import LeastStale
from localmoe.cache.next_use import NextUse
from localmoe.cache.policies import Lru, MakePolicy, Policy
from localmoe.cache.policy_table import POLICIES as BY_NAME
from localmoe.cache.segments import Slru, TwoQueue
from localmoe.cli.options import PolicyKind
from localmoe.settings import PolicyName
from localmoe.weights.catalog import ExpertKey, MoeLayer

LAYERS = tuple(MoeLayer(layer, 16, 2, ()) for layer in (1, 2, 4))
POLICIES: dict[str, MakePolicy] = dict(BY_NAME)
KEYS = [ExpertKey(layer.layer, expert) for layer in LAYERS for expert in range(16)]


@pytest.fixture(params=POLICIES)
def make(request: pytest.FixtureRequest) -> MakePolicy:
    return POLICIES[request.param]


@pytest.fixture
def policy(make: MakePolicy) -> Policy:
    return make(LAYERS)


def hold(policy: Policy, layer: int, *experts: int) -> None:
    """Demand experts that are not held."""
    policy.demand(layer, experts)
    for expert in experts:
        policy.insert(ExpertKey(layer, expert))


def evict_all(policy: Policy, pinned: Container[ExpertKey] = ()) -> list[ExpertKey]:
    order = []
    while (victim := policy.victim(pinned)) is not None:
        policy.remove(victim)
        order.append(victim)
    return order


def test_nothing_held_has_no_victim(policy: Policy) -> None:
    assert policy.victim(()) is None
    policy.demand(1, [3, 4])
    assert policy.victim(()) is None


def test_asking_for_a_victim_changes_nothing(policy: Policy) -> None:
    hold(policy, 1, 0, 1, 2, 3)
    assert policy.victim(()) == policy.victim(()) == policy.victim(())


def test_a_pinned_key_is_no_victim(policy: Policy) -> None:
    hold(policy, 1, 0, 1, 2, 3)
    hold(policy, 4, 2)
    pinned = {key for key in KEYS if key != (1, 2)}
    assert policy.victim(pinned) == ExpertKey(1, 2)
    assert policy.victim(KEYS) is None


def test_keys_that_are_not_held_may_be_pinned(policy: Policy) -> None:
    hold(policy, 1, 1)
    assert policy.victim({ExpertKey(1, 7), ExpertKey(2, 1)}) == ExpertKey(1, 1)


def test_a_removed_key_is_no_victim_and_may_come_back(policy: Policy) -> None:
    hold(policy, 1, 1)
    policy.remove(ExpertKey(1, 1))
    assert policy.victim(()) is None
    policy.insert(ExpertKey(1, 1))
    assert policy.victim(()) == ExpertKey(1, 1)


def test_removing_a_key_that_is_not_held_is_an_error(policy: Policy) -> None:
    with pytest.raises(KeyError):
        policy.remove(ExpertKey(1, 1))


def test_candidates_are_the_victims_to_come(policy: Policy) -> None:
    assert list(policy.candidates(3)) == []
    hold(policy, 1, 0, 1, 2, 3)
    hold(policy, 4, 2)
    policy.demand(1, [1])
    first = policy.candidates(1)
    assert list(first) == [policy.victim(())]
    everything = list(policy.candidates(9))
    assert everything == evict_all(policy)
    assert list(policy.candidates(9)) == []


def test_settling_at_any_time_changes_no_victim(make: MakePolicy) -> None:
    source = random.Random(7)
    settled, left_alone = make(LAYERS), make(LAYERS)
    for token in range(40):
        for layer in (1, 2, 4):
            ids = source.sample(range(16), 2)
            for policy in (settled, left_alone):
                policy.demand(layer, ids)
                if token == 0:
                    hold(policy, layer, *ids)
        if source.random() < 0.5:
            settled.settle()
    assert evict_all(settled) == evict_all(left_alone)


def test_a_chunk_of_many_tokens_counts_as_they_would_one_by_one(make: MakePolicy) -> None:
    source = random.Random(5)
    rows = [source.sample(range(16), 2) for _ in range(100)]
    at_once, one_by_one = make(LAYERS), make(LAYERS)
    at_once.demand(1, [expert for row in rows for expert in row])
    for row in rows:
        one_by_one.demand(1, row)
    for policy in (at_once, one_by_one):
        for expert in rows[-1]:
            policy.insert(ExpertKey(1, expert))
        policy.insert(ExpertKey(2, 0))
    held = [ExpertKey(1, expert) for expert in rows[-1]]
    assert at_once.victim(held) == one_by_one.victim(held)


Step = tuple[str, int, list[int]]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["demand", "hold", "evict", "remove"]),
        st.sampled_from([1, 2, 4]),
        st.lists(st.integers(0, 15), max_size=8),
    ),
    max_size=40,
)


def play(policy: Policy, steps: list[Step]) -> list[ExpertKey | None]:
    """Do as a cache does; return all victims, having checked each."""
    held: set[ExpertKey] = set()
    victims: list[ExpertKey | None] = []
    for what, layer, ids in steps:
        keys = {ExpertKey(layer, expert) for expert in ids}
        if what == "demand":
            policy.demand(layer, ids)
        elif what == "remove":
            for key in sorted(keys & held):
                policy.remove(key)
            held -= keys
        elif what == "evict":
            victim = policy.victim(keys)
            victims.append(victim)
            assert (victim is None) == (not held - keys)
            if victim:
                assert victim in held - keys
                policy.remove(victim)
                held.discard(victim)
        if what in ("demand", "hold"):
            for key in sorted(keys - held):
                policy.insert(key)
            held |= keys
    assert sorted(evict_all(policy)) == sorted(held)
    return victims


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=100, deadline=None)
@given(steps=STEPS)
def test_victims_are_held_unpinned_and_decided_by_history(name: str, steps: list[Step]) -> None:
    assert play(POLICIES[name](LAYERS), steps) == play(POLICIES[name](LAYERS), steps)


def test_settings_and_the_command_line_name_the_same_policies() -> None:
    names = list(BY_NAME)
    assert list(get_args(PolicyName)) == names == [kind.value for kind in PolicyKind]


# --- each one's own order -------------------------------------------------------------------------


def test_lru_evicts_what_was_demanded_longest_ago() -> None:
    policy = Lru(LAYERS)
    hold(policy, 1, 0, 1)
    hold(policy, 2, 0, 1)
    policy.demand(1, [0])
    policy.demand(2, [0])
    assert evict_all(policy) == [(1, 1), (2, 1), (1, 0), (2, 0)]


def test_lfu_evicts_what_was_used_least_often_and_of_equals_the_older() -> None:
    policy = Lfu(LAYERS)
    for ids in ((0, 1), (0, 1), (2, 3)):
        hold(policy, 1, *ids)
    policy.demand(1, [4, 3])
    assert evict_all(policy) == [(1, 2), (1, 0), (1, 1), (1, 3)]


def test_lfu_halves_its_counts_after_a_half_life() -> None:
    policy = Lfu(LAYERS, half_life_tokens=4)
    for token in range(12):
        hold(policy, 1, *((0, 1) if token < 8 else (2, 3)))
    # 4/4 + 4/2 = 3 for the old ones, at the end of the third period; 4 for the new ones.
    assert evict_all(policy) == [(1, 0), (1, 1), (1, 2), (1, 3)]
    assert Lfu(LAYERS).candidates(4) == []


def test_lrfu_lets_few_recent_uses_outweigh_many_old_ones() -> None:
    uses = [(0, 1)] * 20 + [(2, 3)] * 4
    kept = {}
    for name, policy in (
        ("short", Lrfu(LAYERS, half_life_tokens=2)),
        ("long", Lrfu(LAYERS, half_life_tokens=64)),
    ):
        for ids in uses:
            hold(policy, 1, *ids)
        kept[name] = {key.expert for key in evict_all(policy)[2:]}
    assert kept == {"short": {2, 3}, "long": {0, 1}}


def test_static_learns_from_its_first_tokens_only() -> None:
    policy = Static(LAYERS, learned_tokens=3)
    for ids in ((0, 1), (0, 1), (0, 2), *[(2, 3)] * 50):
        hold(policy, 1, *ids)
    assert evict_all(policy) == [(1, 3), (1, 2), (1, 1), (1, 0)]


def test_slru_protects_what_was_used_again() -> None:
    policy = Slru(LAYERS)
    hold(policy, 1, 0, 1)
    hold(policy, 2, 0, 1)
    policy.demand(1, [0])
    hold(policy, 4, 5)
    assert evict_all(policy) == [(1, 1), (2, 0), (2, 1), (4, 5), (1, 0)]


def test_two_queue_keeps_what_came_back() -> None:
    policy = TwoQueue(LAYERS)
    hold(policy, 1, 0, 1, 2, 3)
    policy.demand(1, [0])  # being used while it is new says little
    assert policy.victim(()) == (1, 0)
    policy.remove(ExpertKey(1, 0))
    hold(policy, 1, 0)
    assert evict_all(policy) == [(1, 1), (1, 2), (1, 3), (1, 0)]


def test_least_stale_evicts_what_its_layer_passed_over_then_what_lies_behind() -> None:
    policy = LeastStale(LAYERS)
    for layer in LAYERS:
        hold(policy, layer.layer, 0, 1)
    hold(policy, 1, 0, 2)
    assert policy.victim(()) == (1, 1)  # passed over, although layer 2 was used longer ago
    policy.remove(ExpertKey(1, 1))
    assert evict_all(policy) == [(1, 0), (1, 2), (4, 0), (4, 1), (2, 0), (2, 1)]


def test_next_use_prefers_what_is_used_often_to_what_was_used_last() -> None:
    policy = NextUse(LAYERS)
    for token in range(300):
        policy.demand(1, [0, 1 + token % 15])
    for expert in (0, 14, 15):
        policy.insert(ExpertKey(1, expert))
    policy.demand(1, [14, 15])
    assert evict_all(policy)[-1] == (1, 0)


def test_next_use_prefers_what_was_used_last_where_use_comes_in_bursts() -> None:
    policy = NextUse(LAYERS)
    for token in range(480):
        policy.demand(1, [token // 10 % 16, (token // 10 + 8) % 16])
    held = [policy.insert(ExpertKey(1, expert)) for expert in range(16)]
    assert len(held) == 16
    assert set(evict_all(policy)[-2:]) == {(1, 479 // 10 % 16), (1, (479 // 10 + 8) % 16)}


def test_next_use_evicts_of_equals_the_one_whose_layer_just_passed() -> None:
    policy = NextUse(LAYERS)
    for _ in range(50):
        for layer in LAYERS:
            policy.demand(layer.layer, [0, 1])
    for layer in LAYERS:
        policy.insert(ExpertKey(layer.layer, 0))
    policy.demand(1, [0, 1])
    policy.demand(2, [0, 1])
    assert evict_all(policy) == [(2, 0), (1, 0), (4, 0)]


def trace(n_tokens: int) -> list[tuple[int, list[int]]]:
    """Return routing with skew and repetition: half of each token's experts were just used."""
    source = random.Random(1)
    weights = [1 / (1 + expert) for expert in range(16)]
    last = {layer.layer: [0, 1] for layer in LAYERS}
    steps = []
    for _ in range(n_tokens):
        for layer, before in last.items():
            fresh = source.choices(range(16), weights, k=2)
            ids = list(dict.fromkeys([source.choice(before), *fresh]))[:2]
            last[layer] = ids = ids if len(ids) == 2 else [ids[0], (ids[0] + 1) % 16]
            steps.append((layer, ids))
    return steps


def hits(policy: Policy, steps: list[tuple[int, list[int]]], n_slots: int) -> int:
    held: set[ExpertKey] = set()
    found = 0
    for layer, ids in steps:
        policy.demand(layer, ids)
        keys = {ExpertKey(layer, expert) for expert in ids}
        found += len(keys & held)
        for key in sorted(keys - held):
            if len(held) == n_slots:
                victim = policy.victim(keys)
                assert victim
                policy.remove(victim)
                held.discard(victim)
            policy.insert(key)
            held.add(key)
    return found


@pytest.mark.parametrize("n_slots", [2, 6])
def test_next_use_is_hardly_worse_than_lru_where_slots_are_few(n_slots: int) -> None:
    steps = trace(600)
    assert hits(NextUse(LAYERS), steps, n_slots) > 0.99 * hits(Lru(LAYERS), steps, n_slots) - 1


@pytest.mark.parametrize("n_slots", [8, 12, 20, 30])
def test_next_use_finds_more_than_lru_where_there_is_skew(n_slots: int) -> None:
    steps = trace(600)
    assert hits(NextUse(LAYERS), steps, n_slots) > hits(Lru(LAYERS), steps, n_slots)


def test_next_use_counts_what_a_profile_keeps() -> None:
    policy = NextUse(LAYERS)
    for token in range(3):
        policy.demand(1, [0, 1 + token])
    policy.demand(2, [expert for token in range(100) for expert in (0, 1 + token % 2)])
    uses = policy.uses()
    assert (uses[1].tokens, uses[2].tokens, uses[4].tokens) == (3, 100, 0)
    assert uses[1].counts.tolist() == [3, 1, 1, 1] + [0] * 12
    assert uses[2].counts.tolist() == [100, 50, 50] + [0] * 13
    assert Lru(LAYERS).uses() == {}
