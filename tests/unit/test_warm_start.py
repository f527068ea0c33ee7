"""The start with experts of earlier runs: in the background, into free slots, in no one's way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from localmoe.cache.policies import UseRates
from localmoe.cache.stats import CacheStats
from localmoe.cache.warm_start import hottest
from localmoe.errors import ExpertReadError
from storage import NBYTES, CacheRig, MakeCacheRig

RATES: UseRates = {
    0: np.array([0.1, 0.9, 0, 0.5, 0, 0, 0, 0]),
    1: np.array([0, 0, 0.8, 0.3, 0, 0, 0, 0]),
    2: np.array([0, 0.2, 0, 0.7]),
}


@pytest.fixture
def rig(make_cache_rig: MakeCacheRig) -> CacheRig:
    """Return a cache of 4 slots for layers 0 and 1, and 2 for layer 2."""
    return make_cache_rig(4, 2)


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def wait_for_experts(rig: CacheRig, count: int) -> None:
    """Wait until reads of so many experts of layers 0 and 1 have begun."""
    wait_until(lambda: sum(layer < 2 for layer, _, _ in rig.began()) >= 3 * count)


def test_the_hottest_come_first_and_the_unused_not_at_all(rig: CacheRig) -> None:
    layers = rig.experts.layers
    assert hottest(layers[:2], RATES, 3) == [(0, 1), (1, 2), (0, 3)]
    assert hottest(layers[:2], RATES, 9) == [(0, 1), (1, 2), (0, 3), (1, 3), (0, 0)]
    assert hottest(layers, {}, 9) == []


def test_the_hottest_fill_the_free_slots_and_hit(rig: CacheRig) -> None:
    assert rig.cache.warm_up(RATES) == 6
    wait_until(lambda: len(rig.began()) == 14)
    assert (rig.held(0), rig.held(1), rig.held(2)) == ([1, 3], [2, 3], [1, 3])
    time.sleep(0.02)
    rig.use(0, 1, 3)
    rig.use(1, 2, 3)
    rig.use(2, 1, 3)
    assert rig.cache.stats() == CacheStats(hits=6, prefetched=6)


def test_nothing_is_known_and_nothing_is_read(rig: CacheRig) -> None:
    before = threading.active_count()
    assert rig.cache.warm_up({}) == 0
    assert threading.active_count() == before
    rig.use(0, 1)
    assert rig.cache.stats() == CacheStats(misses=1, read_bytes=NBYTES)


def test_demand_is_read_before_what_has_not_begun(rig: CacheRig) -> None:
    rig.disk.hold()
    rig.cache.warm_up(RATES)
    rig.disk.wait_for_reads(2)
    with rig.cache.acquire(1, [3, 5]) as lease:
        rig.disk.wait_for_reads(4)
        assert {(layer, expert) for layer, expert, _ in rig.began()[2:]} <= {(1, 3), (1, 5)}
        rig.disk.resume()
        rig.check(lease)
    assert rig.cache.stats().misses == 2


def test_a_read_that_has_begun_is_waited_for_as_a_hit(rig: CacheRig) -> None:
    rig.disk.hold()
    rig.cache.warm_up({0: RATES[0]})
    rig.disk.wait_for_reads(2)
    with rig.cache.acquire(0, [1]) as lease:
        assert not lease.ready(0)
        rig.disk.resume()
        rig.check(lease)
    assert rig.cache.stats().hits == 1


def test_what_does_not_fit_any_more_gives_way(rig: CacheRig) -> None:
    rig.cache.warm_up(RATES)
    for experts in ((4, 5, 6, 7), (0, 1, 2, 3)):
        rig.use(0, *experts)
        rig.use(1, *experts)
    assert rig.cache.currsize <= rig.cache.maxsize


def test_a_read_that_fails_is_forgotten_and_tried_again_on_demand(rig: CacheRig) -> None:
    rig.break_part(0, 1, 0)
    rig.cache.warm_up({0: RATES[0]})
    wait_for_experts(rig, 3)
    time.sleep(0.02)
    with rig.cache.acquire(0, [1]) as lease, pytest.raises(ExpertReadError):
        lease.wait(0)
    rig.disk.faults.clear()
    rig.use(0, 1)
    rig.use(0, 3, 0)
    assert rig.cache.stats().misses == 2


def test_closing_does_not_wait_for_what_has_not_begun(rig: CacheRig) -> None:
    rig.disk.delay_seconds = lambda: 0.01
    before = threading.active_count()
    rig.cache.warm_up(RATES)
    assert threading.active_count() == before + 2
    rig.cache.close()
    assert len(rig.began()) < 14
    rig.cache.close()


def test_a_sweep_takes_the_slots(rig: CacheRig) -> None:
    rig.disk.delay_seconds = lambda: 0.002
    rig.cache.warm_up(RATES)
    sweep = rig.cache.sweep(0, range(8))
    seen = [expert for slots in sweep.passes(0) for expert in slots]
    assert sorted(seen) == list(range(8))
    sweep.close()
    rig.use(0, 1)
    rig.use(1, 2)
