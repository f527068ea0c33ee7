"""What every eviction policy promises, and for each one the order that is its own."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from localmoe.cache.policies import Lru, Policy

POLICIES: dict[str, Callable[[], Policy[int]]] = {"lru": Lru}


@pytest.fixture(params=POLICIES)
def policy(request: pytest.FixtureRequest) -> Policy[int]:
    return POLICIES[request.param]()


def test_nothing_held_has_no_victim(policy: Policy[int]) -> None:
    assert policy.victim(()) is None


def test_the_victim_is_held(policy: Policy[int]) -> None:
    for key in range(5):
        policy.insert(key)
    assert policy.victim(()) in range(5)


def test_asking_for_a_victim_changes_nothing(policy: Policy[int]) -> None:
    for key in range(5):
        policy.insert(key)
    assert policy.victim(()) == policy.victim(()) == policy.victim(())


def test_a_pinned_key_is_no_victim(policy: Policy[int]) -> None:
    for key in range(5):
        policy.insert(key)
    assert policy.victim({0, 1, 3, 4}) == 2
    assert policy.victim(range(5)) is None


def test_keys_that_are_not_held_may_be_pinned(policy: Policy[int]) -> None:
    policy.insert(1)
    assert policy.victim({7, 8}) == 1


def test_a_removed_key_is_no_victim_and_may_come_back(policy: Policy[int]) -> None:
    policy.insert(1)
    policy.remove(1)
    assert policy.victim(()) is None
    policy.insert(1)
    assert policy.victim(()) == 1


def test_removing_a_key_that_is_not_held_is_an_error(policy: Policy[int]) -> None:
    with pytest.raises(KeyError):
        policy.remove(1)


def test_touching_a_key_that_is_not_held_is_an_error(policy: Policy[int]) -> None:
    with pytest.raises(KeyError):
        policy.touch(1)


def test_evicting_one_by_one_gives_every_key_once(policy: Policy[int]) -> None:
    source, held = random.Random(3), set(range(50))
    for key in held:
        policy.insert(key)
    for _ in range(200):
        policy.touch(source.randrange(50))
    while held:
        victim = policy.victim(())
        assert victim in held
        policy.remove(victim)
        held.discard(victim)
    assert policy.victim(()) is None


def test_the_same_history_gives_the_same_victims(policy: Policy[int]) -> None:
    twin, source = type(policy)(), random.Random(4)
    for key in range(20):
        policy.insert(key)
        twin.insert(key)
    for _ in range(100):
        key = source.randrange(20)
        policy.touch(key)
        twin.touch(key)
        pinned = set(source.sample(range(20), 5))
        assert policy.victim(pinned) == twin.victim(pinned)


def test_lru_evicts_what_was_demanded_longest_ago() -> None:
    policy: Lru[str] = Lru()
    for key in "abcd":
        policy.insert(key)
    policy.touch("a")
    policy.touch("c")
    order = []
    for _ in range(4):
        victim = policy.victim(())
        assert victim is not None
        order.append(victim)
        policy.remove(victim)
    assert order == ["b", "d", "a", "c"]
