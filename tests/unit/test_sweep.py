"""Sweeps: more experts of a layer than there are slots."""

from __future__ import annotations

from contextlib import closing

import pytest

from localmoe.cache.stats import CacheStats
from localmoe.cache.sweep import Sweep
from localmoe.errors import BudgetError, ExpertReadError
from storage import NBYTES, PARTS, CacheRig, MakeCacheRig

ALL = range(8)
N_PARTS = len(PARTS)


def check(rig: CacheRig, sweep: Sweep, part: int) -> list[int]:
    """Use a part of all experts; return them in the order in which they came."""
    seen: list[int] = []
    for slots in sweep.passes(part):
        for expert, slot in slots.items():
            wanted = rig.experts.expert(sweep.layer, expert)[part]
            start = rig.cache.placement.start(sweep.layer, slot, part)
            assert rig.pool.memory.view[start : start + len(wanted)] == wanted
        seen += slots
    return seen


@pytest.mark.parametrize("slots", range(1, 8))
def test_every_expert_passes_once_per_part_and_is_read_once(
    make_cache_rig: MakeCacheRig, slots: int
) -> None:
    rig = make_cache_rig(slots, 2)
    with closing(rig.cache.sweep(0, [*ALL, *ALL])) as sweep:
        for part in range(N_PARTS):
            assert sorted(check(rig, sweep, part)) == list(ALL)
    assert sorted(rig.began()) == [(0, e, part) for e in ALL for part in range(N_PARTS)]
    assert rig.cache.stats() == CacheStats(hits=0, misses=8, read_bytes=8 * NBYTES)


def test_what_was_there_comes_first_and_is_not_read_again(make_cache_rig: MakeCacheRig) -> None:
    rig = make_cache_rig(4, 2)
    rig.use(0, 5, 2)
    n_before = len(rig.began())
    with closing(rig.cache.sweep(0, ALL)) as sweep:
        for part in range(N_PARTS):
            assert set(check(rig, sweep, part)[:2]) == {2, 5}
    assert {expert for _, expert, _ in rig.began()[n_before:]} == set(ALL) - {2, 5}
    assert rig.cache.stats().hits == 2


def test_a_full_cache_gives_up_some_of_what_is_there(make_cache_rig: MakeCacheRig) -> None:
    rig = make_cache_rig(4, 2)
    rig.use(0, 0, 1, 2, 3)
    with closing(rig.cache.sweep(0, ALL)) as sweep:
        assert len(sweep.slots) == 2
        for part in range(N_PARTS):
            assert sorted(check(rig, sweep, part)) == list(ALL)
    assert rig.cache.stats().hits == 2


def test_what_lies_in_the_slots_at_the_end_stays(make_cache_rig: MakeCacheRig) -> None:
    rig = make_cache_rig(4, 2)
    with closing(rig.cache.sweep(0, ALL)) as sweep:
        for part in range(N_PARTS):
            check(rig, sweep, part)
    assert rig.held(0) == [4, 5, 6, 7]
    n_before = len(rig.began())
    rig.use(0, 4, 5, 6, 7)
    assert len(rig.began()) == n_before


def test_a_sweep_that_ends_early_leaves_nothing_half_read(make_cache_rig: MakeCacheRig) -> None:
    rig = make_cache_rig(4, 2)
    with closing(rig.cache.sweep(0, ALL)) as sweep:
        check(rig, sweep, 0)
        next(iter(sweep.passes(1)))
    assert rig.held(0) == []
    rig.use(0, 0, 1, 2, 3)
    rig.use(1, 4, 5, 6, 7)


def test_the_next_group_is_read_while_one_is_in_use(make_cache_rig: MakeCacheRig) -> None:
    rig = make_cache_rig(4, 2)
    with closing(rig.cache.sweep(0, ALL)) as sweep:
        groups = sweep.passes(0)
        assert list(next(groups)) == [0, 1]
        rig.disk.wait_for_reads(4)  # of 0 to 3: two groups, and no more slots
        assert list(next(groups)) == [2, 3]
        rig.disk.wait_for_reads(6)
        assert list(next(groups)) == [4, 5]
        rig.disk.wait_for_reads(8)
        assert list(next(groups)) == [6, 7]
        # The last group of a part is in use: the first one of the next part is read meanwhile.
        rig.disk.wait_for_reads(10)
        assert set(rig.began()[8:10]) == {(0, 0, 1), (0, 1, 1)}
        assert next(groups, None) is None


def test_parts_in_another_order(make_cache_rig: MakeCacheRig) -> None:
    rig = make_cache_rig(3, 2)
    with closing(rig.cache.sweep(1, ALL)) as sweep:
        for part in (1, 0, 2):
            assert sorted(check(rig, sweep, part)) == list(ALL)
    assert len(rig.began()) == 8 * N_PARTS


def test_a_part_that_is_used_twice_is_read_twice(make_cache_rig: MakeCacheRig) -> None:
    rig = make_cache_rig(4, 2)
    with closing(rig.cache.sweep(0, ALL)) as sweep:
        for part in (0, 1, 1, 2, 0):
            assert sorted(check(rig, sweep, part)) == list(ALL)
    assert len(rig.began()) == 8 * (N_PARTS + 2)
    rig.use(0, *rig.held(0))


def test_closing_twice_gives_the_slots_back_once(make_cache_rig: MakeCacheRig) -> None:
    rig = make_cache_rig(4, 2)
    sweep = rig.cache.sweep(0, ALL)
    sweep.close()
    rig.use(0, 0, 1, 2, 3)
    sweep.close()
    with rig.cache.acquire(0, [4, 5, 6, 7]) as lease:
        assert len(set(lease.slots.values())) == 4
        rig.check(lease)


def test_a_failed_read_ends_the_sweep_and_nothing_else(make_cache_rig: MakeCacheRig) -> None:
    rig = make_cache_rig(4, 2)
    rig.break_part(0, 6, 1)
    with closing(rig.cache.sweep(0, ALL)) as sweep:
        check(rig, sweep, 0)
        with pytest.raises(ExpertReadError, match="Input/output error"):
            check(rig, sweep, 1)
    rig.disk.faults.clear()
    assert rig.held(0) == []
    rig.use(0, 6, 5, 4, 3)


def test_it_wants_its_slots_to_itself(make_cache_rig: MakeCacheRig) -> None:
    rig = make_cache_rig(4, 2)
    with (
        rig.cache.acquire(1, [0]),
        pytest.raises(BudgetError, match="in use"),
    ):
        rig.cache.sweep(0, ALL)
    with closing(rig.cache.sweep(0, ALL)):
        with pytest.raises(BudgetError, match="in use"):
            rig.cache.acquire(1, [0])
        with pytest.raises(BudgetError, match="in use"):
            rig.cache.sweep(1, ALL)
        rig.use(2, 0, 1)  # another size
    rig.use(1, 0, 1, 2, 3)


def test_fits(make_cache_rig: MakeCacheRig) -> None:
    rig = make_cache_rig(4, 2)
    assert rig.cache.fits(0, [1, 2, 3, 4, 4, 1])
    assert not rig.cache.fits(0, [1, 2, 3, 4, 5])
    assert rig.cache.fits(2, [0, 1])
    assert not rig.cache.fits(2, [0, 1, 2])
