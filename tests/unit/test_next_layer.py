"""The next layer's experts are read while this one computes, and what was read in vain goes."""

from __future__ import annotations

import pytest

from localmoe.backends.llama.next_layer import NextLayer
from localmoe.weights.catalog import ExpertKey
from storage import NBYTES, CacheRig, MakeCacheRig

MANY = 8
"""Tokens that make a step long."""


@pytest.fixture
def rig(make_cache_rig: MakeCacheRig) -> CacheRig:
    """Return a cache with room for layers 0 and 1 (8 experts each), the last but one."""
    return make_cache_rig(16, 4)


@pytest.fixture
def next_layer(rig: CacheRig) -> NextLayer:
    return NextLayer(rig.cache, {layer.layer: layer for layer in rig.experts.layers})


def rows(rig: CacheRig, layer: int, *experts: int) -> list[int]:
    """Return the experts of so many rows that the step is a long one."""
    count = MANY * rig.experts.layers[layer].n_experts_used
    return [experts[i % len(experts)] for i in range(count)]


def test_all_experts_of_the_next_layer_are_read_ahead(rig: CacheRig, next_layer: NextLayer) -> None:
    with rig.cache.acquire(0, range(6)):
        next_layer.routed(0, rows(rig, 0, *range(6)))
        assert rig.held(1) == list(range(8))
    before = rig.cache.stats()
    assert (before.prefetched, before.misses) == (8, 6)
    with rig.cache.acquire(1, range(7)) as lease:
        next_layer.routed(1, rows(rig, 1, *range(7)))
        rig.check(lease)
    assert rig.cache.stats().misses == 6 + 7
    assert rig.cache.stats().hits == 0
    assert rig.cache.stats().read_bytes == 14 * NBYTES
    next_layer.close()
    assert rig.held(1) == list(range(7)), "the eighth was read in vain"


def test_what_was_there_before_stays(rig: CacheRig, next_layer: NextLayer) -> None:
    rig.use(1, 7)
    with rig.cache.acquire(0, range(6)):
        next_layer.routed(0, rows(rig, 0, *range(6)))
    with rig.cache.acquire(1, range(5)):
        next_layer.routed(1, rows(rig, 1, *range(5)))
    next_layer.close()
    assert rig.held(1) == [0, 1, 2, 3, 4, 7]


def test_the_last_long_step_says_what_the_next_one_will_use(
    rig: CacheRig, next_layer: NextLayer
) -> None:
    for layer in (0, 1):
        with rig.cache.acquire(layer, range(5)):
            next_layer.routed(layer, rows(rig, layer, *range(5)))
    next_layer.close()
    rig.cache.resize([0, 0])
    rig.cache.resize([16, 4])
    with rig.cache.acquire(0, range(5)):
        next_layer.routed(0, rows(rig, 0, *range(5)))
        assert rig.held(1) == list(range(5))
    next_layer.close()


def test_a_layer_that_was_never_reached_keeps_nothing(rig: CacheRig, next_layer: NextLayer) -> None:
    with rig.cache.acquire(0, range(8)):
        next_layer.routed(0, rows(rig, 0, *range(8)))
    next_layer.close()
    assert rig.held(1) == []
    rig.use(1, *range(8))


@pytest.mark.parametrize(("experts", "tokens"), [(range(8), 1), (range(4), MANY)])
def test_short_steps_and_few_experts_read_nothing_ahead(
    rig: CacheRig, next_layer: NextLayer, experts: range, tokens: int
) -> None:
    used = rows(rig, 0, *experts)
    next_layer.routed(0, used[: len(used) * tokens // MANY])
    assert rig.held(1) == []


def test_the_last_layer_is_left_alone(rig: CacheRig, next_layer: NextLayer) -> None:
    next_layer.routed(1, rows(rig, 1, *range(8)))
    assert rig.held(2) == []


def test_slots_for_less_than_two_layers_are_not_taken(make_cache_rig: MakeCacheRig) -> None:
    rig = make_cache_rig(15, 4)
    assert rig.cache.acquire_ahead(1, range(3)) is None
    assert rig.held(1) == []


def test_discarding_leaves_what_is_held(rig: CacheRig) -> None:
    rig.use(0, 1, 2)
    with rig.cache.acquire(0, [1]):
        rig.cache.discard(0, [1, 2, 3])
        assert ExpertKey(0, 1) in rig.cache
        assert ExpertKey(0, 2) not in rig.cache
    rig.use(0, 1, 2, 3)


def test_a_failed_read_ahead_is_read_again(rig: CacheRig, next_layer: NextLayer) -> None:
    rig.break_part(1, 3, 0)
    with rig.cache.acquire(0, range(8)):
        next_layer.routed(0, rows(rig, 0, *range(8)))
    next_layer.close()
    rig.disk.faults.clear()
    rig.use(1, 3)
