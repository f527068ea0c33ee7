"""The expert cache: hits, misses, eviction, pins, leases, failures, prefetch."""

from __future__ import annotations

import errno

import pytest

from localmoe.cache.stats import CacheStats
from localmoe.errors import BudgetError, ExpertReadError
from storage import NBYTES, CacheRig, MakeCacheRig


@pytest.fixture
def rig(make_cache_rig: MakeCacheRig) -> CacheRig:
    """Return a cache of 4 slots for layers 0 and 1, and 2 for layer 2."""
    return make_cache_rig(4, 2)


# --- demand ---------------------------------------------------------------------------------------


def test_a_miss_is_read_and_then_hits(rig: CacheRig) -> None:
    rig.use(0, 3, 5)
    assert rig.cache.stats() == CacheStats(hits=0, misses=2, read_bytes=2 * NBYTES)
    rig.use(0, 5, 3)
    assert rig.cache.stats() == CacheStats(hits=2, misses=2, read_bytes=2 * NBYTES)
    assert len(rig.disk.began) == 6


def test_a_hit_has_nothing_pending(rig: CacheRig) -> None:
    rig.use(0, 3)
    with rig.cache.acquire(0, [3]) as lease:
        assert lease.pending == []
        assert all(lease.ready(part) for part in range(3))


def test_duplicates_are_one_request(rig: CacheRig) -> None:
    with rig.cache.acquire(0, [3, 3, 1, 3]) as lease:
        assert sorted(lease.slots) == [1, 3]
    assert rig.cache.stats().misses == 2


def test_no_experts_are_no_request(rig: CacheRig) -> None:
    with rig.cache.acquire(0, []) as lease:
        assert lease.slots == {}
        lease.wait(0)
    assert rig.cache.stats() == CacheStats()


def test_reads_are_submitted_at_once_in_the_order_of_use(make_cache_rig: MakeCacheRig) -> None:
    rig = make_cache_rig(4, 2, workers=1)
    rig.disk.hold()
    with rig.cache.acquire(0, [4, 2]) as lease:
        assert not lease.ready(0)
        rig.disk.resume()
        rig.check(lease)
    assert rig.began() == [(0, 4, 0), (0, 2, 0), (0, 4, 1), (0, 2, 1), (0, 4, 2), (0, 2, 2)]


def test_a_part_is_ready_before_the_parts_behind_it(make_cache_rig: MakeCacheRig) -> None:
    rig = make_cache_rig(4, 2, workers=1)
    rig.disk.hold()
    with rig.cache.acquire(0, [4, 2]) as lease:
        rig.disk.let(2)
        lease.wait(0)
        assert [lease.ready(part) for part in range(3)] == [True, False, False]
        rig.disk.resume()


def test_sizes(rig: CacheRig) -> None:
    assert (rig.cache.maxsize, rig.cache.currsize) == (6, 0)
    rig.use(0, 1, 2, 3)
    rig.use(2, 1)
    assert (rig.cache.maxsize, rig.cache.currsize) == (6, 4)


def test_the_least_recent_expert_of_the_class_is_evicted(rig: CacheRig) -> None:
    for expert in (0, 1):
        rig.use(0, expert)
        rig.use(1, expert)
    rig.use(0, 0)
    rig.use(0, 7)
    assert (rig.held(0), rig.held(1)) == ([0, 1, 7], [1])
    rig.use(0, 6)
    assert (rig.held(0), rig.held(1)) == ([0, 6, 7], [1])


def test_size_classes_do_not_evict_each_other(rig: CacheRig) -> None:
    rig.use(0, 0, 1, 2, 3)
    rig.use(2, 0)
    rig.use(2, 1)
    rig.use(2, 2)
    assert rig.held(0) == [0, 1, 2, 3]
    assert rig.held(2) == [1, 2]


def test_what_a_call_asks_for_is_not_evicted_by_it(rig: CacheRig) -> None:
    rig.use(0, 0)
    rig.use(0, 1, 2, 3)
    with rig.cache.acquire(0, [5, 6, 7, 0]) as lease:
        rig.check(lease)
    assert rig.held(0) == [0, 5, 6, 7]
    assert rig.cache.stats().hits == 1


# --- leases ---------------------------------------------------------------------------------------


def test_two_leases_pin_together(rig: CacheRig) -> None:
    with rig.cache.acquire(0, [0, 1]) as first, rig.cache.acquire(1, [0, 1]) as second:
        assert set(first.slots.values()).isdisjoint(second.slots.values())
        with pytest.raises(BudgetError, match=r"asks for 1 experts .* 4 slots 4 are in use"):
            rig.cache.acquire(0, [2])
        rig.check(first)
        rig.check(second)
    rig.use(0, 2, 3, 4, 5)


def test_more_than_the_slots_is_refused_and_changes_nothing(rig: CacheRig) -> None:
    rig.use(0, 0, 1, 2, 3)
    before = rig.cache.stats()
    with pytest.raises(BudgetError, match=r"layer 0 asks for 5 experts .* 4 slots 0 are in use"):
        rig.cache.acquire(0, [4, 5, 6, 7, 0])
    assert rig.held(0) == [0, 1, 2, 3]
    assert rig.cache.stats() == before
    rig.use(0, 4, 5, 6, 7)


def test_one_expert_in_two_leases_stays_until_both_are_closed(rig: CacheRig) -> None:
    first, second = rig.cache.acquire(0, [0]), rig.cache.acquire(0, [0])
    assert first.slots == second.slots
    first.close()
    rig.use(0, 1, 2, 3)
    with pytest.raises(BudgetError):
        rig.cache.acquire(0, [4, 5, 6, 7])
    rig.check(second)
    second.close()
    rig.use(0, 4, 5, 6, 7)


def test_closing_twice_unpins_once(rig: CacheRig) -> None:
    first, second = rig.cache.acquire(0, [0]), rig.cache.acquire(0, [0])
    first.close()
    first.close()
    with pytest.raises(BudgetError):
        rig.cache.acquire(0, [4, 5, 6, 7])
    second.close()


def test_closing_waits_for_the_reads(rig: CacheRig) -> None:
    rig.disk.delay_seconds = lambda: 0.02
    rig.cache.acquire(0, [0, 1]).close()
    assert len(rig.disk.began) == 6
    rig.disk.delay_seconds = lambda: 0.0
    with rig.cache.acquire(0, [0, 1]) as lease:
        assert lease.pending == []
        rig.check(lease)


def test_an_error_inside_a_lease_lets_go(rig: CacheRig) -> None:
    with pytest.raises(ZeroDivisionError), rig.cache.acquire(0, [0, 1, 2, 3]):
        raise ZeroDivisionError
    rig.use(0, 4, 5, 6, 7)


# --- memory lent ----------------------------------------------------------------------------------


def test_fewer_slots_forget_what_lay_beyond_them(make_cache_rig: MakeCacheRig) -> None:
    rig = make_cache_rig(6, 2)
    rig.use(0, 0, 1, 2)
    rig.use(1, 3, 4)
    rig.cache.resize([4, 1])
    # Slots are given out from the first on.
    assert (rig.held(0), rig.held(1)) == ([0, 1, 2], [3])
    assert rig.cache.maxsize == 5
    rig.use(0, 4, 5, 6, 7)
    assert rig.held(1) == []
    with pytest.raises(BudgetError):
        rig.cache.acquire(0, range(5))
    rig.cache.resize([6, 2])
    rig.use(1, 5, 6)
    assert (rig.held(0), rig.held(1)) == ([4, 5, 6, 7], [5, 6])


def test_slots_of_experts_in_use_are_not_lent(rig: CacheRig) -> None:
    with rig.cache.acquire(0, [1]) as lease, pytest.raises(BudgetError, match="in use"):
        rig.cache.resize([1, 1])
    assert lease.slots == {}
    rig.use(0, 1)


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_failed_read_is_forgotten_and_read_again(rig: CacheRig, part: int) -> None:
    rig.use(0, 1)
    rig.break_part(0, 3, part)
    with rig.cache.acquire(0, [1, 3, 4]) as lease, pytest.raises(ExpertReadError) as caught:
        lease.wait(part)
    assert caught.value.errno == errno.EIO
    assert caught.value.offset == rig.experts.layers[0].parts[part].expert_extent(3).offset
    assert rig.held(0) == [1, 4]
    rig.disk.faults.clear()
    rig.use(0, 1, 3, 4)
    assert rig.cache.stats() == CacheStats(hits=3, misses=4, read_bytes=4 * NBYTES)


def test_a_failure_that_nobody_waited_for_is_forgotten_too(rig: CacheRig) -> None:
    rig.break_part(0, 3, 2)
    rig.cache.acquire(0, [3]).close()
    assert rig.held(0) == []


def test_failures_lose_no_slots(rig: CacheRig) -> None:
    for expert in range(8):
        rig.break_part(0, expert, 1)
    for _ in range(5):
        with rig.cache.acquire(0, [0, 1, 2, 3]) as lease, pytest.raises(ExpertReadError):
            lease.wait(1)
    rig.disk.faults.clear()
    rig.use(0, 4, 5, 6, 7)


def test_a_failed_expert_in_two_leases_keeps_its_slot_until_both_are_closed(rig: CacheRig) -> None:
    rig.break_part(0, 3, 0)
    first, second = rig.cache.acquire(0, [3]), rig.cache.acquire(0, [3])
    first.close()
    with rig.cache.acquire(0, [0, 1, 2]) as others:
        assert set(others.slots.values()).isdisjoint(second.slots.values())
        rig.check(others)
    with pytest.raises(ExpertReadError):
        second.wait(0)
    second.close()
    rig.disk.faults.clear()
    rig.use(0, 0, 1, 2, 3)


def test_a_lease_on_a_failed_expert_that_another_holds_fails_too(rig: CacheRig) -> None:
    rig.break_part(0, 3, 0)
    first = rig.cache.acquire(0, [3])
    with pytest.raises(ExpertReadError):
        first.wait(0)
    rig.disk.faults.clear()
    second = rig.cache.acquire(0, [3])
    with pytest.raises(ExpertReadError):
        second.wait(0)
    first.close()
    second.close()
    rig.use(0, 3)


# --- the end --------------------------------------------------------------------------------------


def test_a_lease_may_be_closed_after_the_cache(rig: CacheRig) -> None:
    rig.disk.hold()
    lease = rig.cache.acquire(0, [0, 1, 2, 3])
    rig.disk.wait_for_reads(2)
    rig.disk.resume()
    rig.cache.close()
    lease.close()


def test_a_kept_error_does_not_keep_the_slots_mapped(make_cache_rig: MakeCacheRig) -> None:
    rig = make_cache_rig(4, 2)
    rig.break_part(0, 3, 0)
    with rig.cache.acquire(0, [3]) as lease, pytest.raises(ExpertReadError) as caught:
        lease.wait(0)
    rig.cache.close()
    rig.pool.close()
    assert caught.value.__traceback__ is not None
