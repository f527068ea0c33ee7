"""The cache against simple models: random layouts, calls, failures and delays.

`CacheMachine` does everything a user of the cache can do, with threads and a disk that fails;
`test_lru_order...` does demand alone, and then the cache must agree with an OrderedDict.
"""

from __future__ import annotations

import errno
import random
import shutil
import tempfile
import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from unittest.mock import patch

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from localmoe.cache import bounce
from localmoe.cache.expert_cache import ExpertCache
from localmoe.cache.lease import Lease
from localmoe.cache.placement import Placement
from localmoe.cache.reader import Job, Load
from localmoe.cache.slots import SlotPool, slot_classes
from localmoe.cache.supply import FileSupply
from localmoe.cache.sweep import Sweep
from localmoe.errors import BudgetError, ExpertReadError
from localmoe.weights.catalog import ExpertKey
from storage import Disk, ExpertFiles, LayerShape

PART_NBYTES = st.sampled_from([1, 511, 512, 4096, 5000, 12288])
MOST_EXPERTS = 6
IDS = st.lists(st.integers(0, MOST_EXPERTS - 1), max_size=5)
SWEPT_IDS = st.lists(st.integers(0, MOST_EXPERTS - 1), min_size=2, max_size=MOST_EXPERTS)
LAYERS = st.integers(0, 3)


@st.composite
def layer_shapes(draw: st.DrawFn) -> list[LayerShape]:
    """Draw one to four layers; few kinds of parts, so that layers often share a size class."""
    kinds = draw(st.lists(st.lists(PART_NBYTES, min_size=1, max_size=3), min_size=1, max_size=2))
    return [
        LayerShape(
            draw(st.integers(2, MOST_EXPERTS)),
            tuple(draw(st.sampled_from(kinds))),
            shard=draw(st.integers(0, 1)),
            scattered=draw(st.booleans()),
        )
        for _ in range(draw(st.integers(1, 4)))
    ]


class Rig:
    """A cache over random experts on a disk of random alignment."""

    def __init__(self, draw: st.DataObject) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.experts = ExpertFiles(self.directory, draw.draw(layer_shapes()))
        blocks = {s: draw.draw(st.sampled_from([1, 512, 4096])) for s in self.experts.paths}
        self.disk = Disk()
        self.files = self.experts.open(self.disk, blocks)
        classes = slot_classes(self.experts.layers, max(blocks.values()))
        counts = [draw.draw(st.integers(1, min(c.n_experts, 9))) for c in classes]
        self.pool = SlotPool(classes, counts)
        workers = draw.draw(st.integers(1, 3))
        with patch.object(bounce, "BOUNCE_NBYTES", 8192):  # less than the longest parts
            supply = FileSupply(self.experts.layers, self.pool, self.files, workers)
            self.cache = ExpertCache(self.experts.layers, self.pool, supply)

    def choose(self, layer: int, ids: Sequence[int]) -> tuple[int, list[int]]:
        """Make any drawn numbers a layer and experts that exist."""
        layer %= len(self.experts.layers)
        return layer, [e % self.experts.layers[layer].n_experts for e in ids]

    def class_of(self, key: ExpertKey) -> int:
        return self.pool.class_index(key.layer)

    def wrong_parts(self, lease: Lease) -> list[tuple[int, int]]:
        """Return (expert, part) whose bytes in the slot are not the file's."""
        return [
            (expert, part)
            for expert, slot in lease.slots.items()
            for part, wanted in enumerate(self.experts.expert(lease.layer, expert))
            if self.at(lease.layer, slot, part, len(wanted)) != wanted
        ]

    def wait(self, lease: Lease) -> None:
        for part in range(len(self.experts.layers[lease.layer].parts)):
            lease.wait(part)

    def close(self) -> None:
        self.disk.resume()
        self.cache.close()
        self.pool.close()
        for file in self.files.values():
            file.close()
        self.disk.close()
        shutil.rmtree(self.directory)

    def at(self, layer: int, slot: int, part: int, nbytes: int) -> bytes:
        start = self.cache.placement.start(layer, slot, part)
        return bytes(self.pool.memory.view[start : start + nbytes])


class CacheMachine(RuleBasedStateMachine):
    """Everything at random; the model is what is leased, what failed, and what was asked."""

    leases: Bundle[Lease] = Bundle("leases")

    @initialize(draw=st.data(), seed=st.integers(0, 1 << 20))
    def begin(self, draw: st.DataObject, seed: int) -> None:
        self.n_threads_before = threading.active_count()
        self.rig = Rig(draw)
        self.cache = self.rig.cache
        self.open: dict[Lease, dict[ExpertKey, int]] = {}
        """Leases that are open, with the slots that they were given."""
        self.checked: set[Lease] = set()
        self.requests = 0
        self.was_broken = False
        delays = random.Random(seed)
        self.rig.disk.delay_seconds = lambda: delays.choice((0.0, 0.0, 0.0002, 0.001))

    @rule(target=leases, layer=LAYERS, ids=IDS)
    def acquire(self, layer: int, ids: list[int]) -> Lease | MultipleResults[Lease]:
        return self.lease(layer, ids) or multiple()

    @rule(calls=st.lists(st.tuples(LAYERS, IDS), min_size=1, max_size=6))
    def use(self, calls: list[tuple[int, list[int]]]) -> None:
        """Demand and let go, as an engine does, while other leases stay open."""
        for layer, ids in calls:
            lease = self.lease(layer, ids)
            if lease:
                self.wait(lease)
                self.release(lease)

    def lease(self, layer: int, ids: list[int]) -> Lease | None:
        """Demand experts; None where the cache refuses, which it must exactly when it is full."""
        layer, ids = self.rig.choose(layer, ids)
        keys = {ExpertKey(layer, expert) for expert in ids}
        of_class = self.rig.pool.class_index(layer)
        pinned = {k for slots in self.open.values() for k in slots}
        needed = {k for k in pinned | keys if self.rig.class_of(k) == of_class}
        before = self.cache.stats()
        if len(needed) > self.rig.pool.counts[of_class]:
            with pytest.raises(BudgetError):
                self.cache.acquire(layer, ids)
            assert self.cache.stats() == before
            return None
        lease = self.cache.acquire(layer, ids)
        assert {ExpertKey(layer, e) for e in lease.slots} == keys
        self.open[lease] = {ExpertKey(layer, e): slot for e, slot in lease.slots.items()}
        self.requests += len(keys)
        return lease

    @rule(lease=leases)
    def wait(self, lease: Lease) -> None:
        try:
            self.rig.wait(lease)
        except ExpertReadError:
            assert self.was_broken
            return
        assert self.rig.wrong_parts(lease) == []
        self.checked.add(lease)

    @rule(lease=consumes(leases))
    def release(self, lease: Lease) -> None:
        lease.close()
        del self.open[lease]
        self.checked.discard(lease)

    @rule(layer=LAYERS, ids=SWEPT_IDS, n_parts=st.integers(0, 3), lazy=st.booleans())
    def sweep(self, layer: int, ids: list[int], n_parts: int, lazy: bool) -> None:
        """Every expert passes by once per part, with its bytes; some sweeps end early."""
        layer, ids = self.rig.choose(layer, ids)
        of_class = self.rig.pool.class_index(layer)
        pinned = {k for slots in self.open.values() for k in slots}
        if any(self.rig.class_of(key) == of_class for key in pinned):
            with pytest.raises(BudgetError, match="in use"):
                self.cache.sweep(layer, ids)
            return
        if self.cache.fits(layer, ids):
            return
        self.requests += len(set(ids))
        all_parts = range(len(self.rig.experts.layers[layer].parts))
        try:
            with closing(self.cache.sweep(layer, ids)) as sweep:
                for part in all_parts[:n_parts]:
                    self.sweep_part(sweep, part, ids, lazy)
        except ExpertReadError:
            assert self.was_broken

    def sweep_part(self, sweep: Sweep, part: int, ids: list[int], lazy: bool) -> None:
        seen: list[int] = []
        for slots in sweep.passes(part):
            assert slots
            if lazy:
                return
            seen += slots
            for expert, slot in slots.items():
                wanted = self.rig.experts.expert(sweep.layer, expert)[part]
                assert self.rig.at(sweep.layer, slot, part, len(wanted)) == wanted
        assert sorted(seen) == sorted(set(ids))

    @rule(layer=LAYERS, expert=st.integers(0, MOST_EXPERTS - 1), part=st.integers(0, 2))
    def break_part(self, layer: int, expert: int, part: int) -> None:
        layer, (expert,) = self.rig.choose(layer, [expert])
        parts = self.rig.experts.layers[layer].parts
        extent = parts[part % len(parts)].expert_pieces(expert)[-1]
        code = errno.EIO if part else 0
        self.was_broken = True
        self.rig.disk.faults[extent.path, extent.offset + extent.nbytes // 2] = code

    @rule(longest=st.sampled_from([4096, 8192, 1 << 30]))
    def repair(self, longest: int) -> None:
        self.rig.disk.longest_read_nbytes = longest
        self.rig.disk.faults.clear()

    @invariant()
    def sizes_hold(self) -> None:
        assert 0 <= self.cache.currsize <= self.cache.maxsize == sum(self.rig.pool.counts)
        stats = self.cache.stats()
        assert stats.hits + stats.misses == self.requests

    @invariant()
    def no_two_leased_experts_share_a_slot(self) -> None:
        held = {(key, slot) for slots in self.open.values() for key, slot in slots.items()}
        users = Counter((self.rig.class_of(key), slot) for key, slot in held)
        assert all(n == 1 for n in users.values())

    @invariant()
    def what_is_pinned_stays(self) -> None:
        for lease, slots in self.open.items():
            assert all(key in self.cache for key in slots)
            assert {ExpertKey(lease.layer, e): s for e, s in lease.slots.items()} == slots
            if lease in self.checked:
                assert self.rig.wrong_parts(lease) == []

    def teardown(self) -> None:
        """Let go of everything: then every slot can be had, and every expert can be read."""
        if not hasattr(self, "rig"):
            return
        try:
            for lease in self.open:
                lease.close()
            self.rig.disk.faults.clear()
            self._fill_every_slot()
            for layer in self.rig.experts.layers:
                for expert in range(layer.n_experts):
                    with self.cache.acquire(layer.layer, [expert]) as lease:
                        self.rig.wait(lease)
                        assert self.rig.wrong_parts(lease) == []
        finally:
            self.rig.close()
        assert threading.active_count() == self.n_threads_before

    def _fill_every_slot(self) -> None:
        leases = []
        for slot_class, count in zip(self.rig.pool.classes, self.rig.pool.counts, strict=True):
            keys = [(m.layer, e) for m in slot_class.layers for e in range(m.n_experts)]
            leases += [self.cache.acquire(layer, [expert]) for layer, expert in keys[:count]]
        assert self.cache.currsize == self.cache.maxsize
        for lease in leases:
            self.rig.wait(lease)
        for lease in leases:
            assert self.rig.wrong_parts(lease) == []
            lease.close()


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


@settings(max_examples=50, deadline=None)
@given(draw=st.data(), calls=st.lists(st.tuples(LAYERS, IDS), max_size=40))
def test_lru_order_hits_and_misses_are_those_of_a_plain_lru(
    draw: st.DataObject, calls: list[tuple[int, list[int]]]
) -> None:
    rig = Rig(draw)
    try:
        models = [OrderedDict[ExpertKey, None]() for _ in rig.pool.counts]
        hits = misses = 0
        for layer, ids in calls:
            layer, ids = rig.choose(layer, ids)
            of_class = rig.pool.class_index(layer)
            model, count = models[of_class], rig.pool.counts[of_class]
            keys = [ExpertKey(layer, e) for e in dict.fromkeys(ids)]
            if len(keys) > count:
                continue
            rig.cache.acquire(layer, ids).close()
            for key in (k for k in keys if k in model):
                model.move_to_end(key)
                hits += 1
            for key in (k for k in keys if k not in model):
                misses += 1
                if len(model) == count:
                    model.popitem(last=False)
                model[key] = None
            held = {k for m in models for k in m}
            assert rig.cache.currsize == len(held)
            assert all(key in rig.cache for key in held)
        assert (rig.cache.stats().hits, rig.cache.stats().misses) == (hits, misses)
    finally:
        rig.close()


@settings(max_examples=200, deadline=None)
@given(draw=st.data())
def test_what_reads_may_touch_never_overlaps(draw: st.DataObject) -> None:
    """Every part of every expert of a layer, in one slot: each stays in its room.

    Within it, no piece is written over by the read of another one.
    """
    rig = Rig(draw)
    try:
        block = max(file.block for file in rig.files.values())
        placement = Placement(rig.experts.layers, rig.pool, block)
        for layer in rig.experts.layers:
            of_class = rig.pool.class_index(layer.layer)
            base = rig.pool.start(of_class, 0)
            for expert in range(layer.n_experts):
                load = Load(ExpertKey(layer.layer, expert), 0, layer.part_nbytes)
                end = base
                for index, part in enumerate(layer.parts):
                    start = placement.start(layer.layer, 0, index)
                    assert start % 32 == 0
                    jobs = list(placement.part_jobs([load], index))
                    rooms = [touched(job, rig.files[job.extent.path].block) for job in jobs]
                    assert end <= min(first for first, _ in rooms)
                    end = max(last for _, last in rooms)
                    assert jobs_follow(jobs, start, part.expert_nbytes)
                    for job, (first, last) in zip(jobs, rooms, strict=True):
                        others = [other for other in jobs if other is not job]
                        assert all(last <= o.start or stop_of(o) <= first for o in others)
                assert end <= base + rig.pool.classes[of_class].stride_nbytes
    finally:
        rig.close()


def touched(job: Job, block: int) -> tuple[int, int]:
    """Return what a read of a piece may write: the contracts of DirectFile's methods."""
    start, nbytes, lead = job.start, job.extent.nbytes, job.extent.offset % block
    if job.apart:
        return start, start + nbytes
    if start % block == lead:
        return start - lead, start - lead + -(-(lead + nbytes) // block) * block
    assert start % block == 0
    return start, start + -(-nbytes // block) * block + block


def stop_of(job: Job) -> int:
    return job.start + job.extent.nbytes


def jobs_follow(jobs: Sequence[Job], start: int, nbytes: int) -> bool:
    """Return whether pieces lie one right after the other and make up so many bytes."""
    stops = [start, *map(stop_of, jobs)]
    return [job.start for job in jobs] == stops[:-1] and stops[-1] == start + nbytes
