"""Compiled and Python requests of one cache, mixed at random, agree with a plain LRU."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import OrderedDict
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from localmoe.cache.direct_file import DirectFile
from localmoe.cache.expert_cache import ExpertCache
from localmoe.cache.slots import SlotPool, slot_classes
from localmoe.cache.supply import FileSupply
from localmoe.errors import BudgetError, ExpertReadError
from localmoe.native.library import library
from localmoe.weights.catalog import ExpertKey
from storage import CompiledUser, ExpertFiles, LayerShape

pytestmark = pytest.mark.skipif(library() is None, reason="nothing is compiled here")

MOST_EXPERTS = 6
MOST_INTO_FREE = 16
"""Reads into slots that nobody has used: as in native/experts.c."""
KINDS = st.lists(st.sampled_from([1, 511, 512, 4096, 5000]), min_size=1, max_size=3)
CALLS = st.lists(
    st.tuples(
        st.sampled_from(["compiled", "compiled", "python", "settle", "resize"]),
        st.integers(0, 3),
        st.lists(st.integers(0, MOST_EXPERTS - 1), min_size=1, max_size=4, unique=True),
    ),
    max_size=40,
)


class Rig:
    """A cache over real files, which compiled code can read."""

    def __init__(self, draw: st.DataObject) -> None:
        self.directory = Path(tempfile.mkdtemp())
        kinds = draw.draw(st.lists(KINDS, min_size=1, max_size=2))
        shapes = [
            LayerShape(draw.draw(st.integers(2, MOST_EXPERTS)), tuple(kinds[i % len(kinds)]))
            for i in range(draw.draw(st.integers(1, 4)))
        ]
        self.files = ExpertFiles(self.directory, shapes)
        self.layers = self.files.layers
        self.direct = {path: DirectFile(path) for path in self.files.paths.values()}
        classes = slot_classes(self.layers, max(file.block for file in self.direct.values()))
        counts = [draw.draw(st.integers(1, min(c.n_experts, 9))) for c in classes]
        self.pool = SlotPool(classes, counts)
        supply = FileSupply(self.layers, self.pool, self.direct, workers=1)
        self.cache = ExpertCache(self.layers, self.pool, supply, library=library())
        assert (compiled := library())
        self.user = CompiledUser(compiled, self.cache)

    def check(self, layer: int, slots: dict[int, int]) -> None:
        """The slots hold what the files hold."""
        for expert, slot in slots.items():
            for part, wanted in enumerate(self.files.expert(layer, expert)):
                start = self.cache.placement.start(layer, slot, part)
                assert self.pool.memory.view[start : start + len(wanted)] == wanted

    def use(self, layer: int, ids: list[int]) -> bool:
        """Serve a request by compiled code; return whether it was taken."""
        if not self.user.acquire(layer, ids):
            return False
        for part in range(len(self.layers[layer].parts)):
            assert self.user.wait(part)
        self.check(layer, self.user.slots)
        self.user.release()
        return True

    def use_python(self, layer: int, ids: list[int]) -> None:
        with self.cache.acquire(layer, ids) as lease:
            for part in range(len(self.layers[layer].parts)):
                lease.wait(part)
            self.check(layer, lease.slots)

    def close(self) -> None:
        self.cache.close()
        self.pool.close()
        for file in self.direct.values():
            file.close()
        shutil.rmtree(self.directory)


class PlainLru:
    """What the cache should hold, by size class."""

    def __init__(self, limits: list[int]) -> None:
        self.limits = limits
        self.held = [OrderedDict[ExpertKey, None]() for _ in limits]
        self.hits = self.misses = 0

    def demand(self, of_class: int, keys: list[ExpertKey]) -> None:
        held = self.held[of_class]
        here = [key for key in keys if key in held]
        for key in here:
            held.move_to_end(key)
        for key in keys:
            if key not in held:
                if len(held) == self.limits[of_class]:
                    held.popitem(last=False)
                held[key] = None
        self.hits += len(here)
        self.misses += len(keys) - len(here)


@settings(max_examples=120, deadline=None)
@given(draw=st.data(), calls=CALLS)
def test_compiled_and_python_requests_are_those_of_one_plain_lru(
    draw: st.DataObject, calls: list[tuple[str, int, list[int]]]
) -> None:
    rig = Rig(draw)
    model = PlainLru(list(rig.pool.counts))
    try:
        for what, layer, ids in calls:
            layer %= len(rig.layers)
            ids = list(dict.fromkeys(e % rig.layers[layer].n_experts for e in ids))
            of_class = rig.pool.class_index(layer)
            if what == "settle":
                rig.cache.settle()
            elif what == "resize":
                keep = [max(1, n - len(ids) % 2) for n in rig.pool.counts]
                rig.cache.resize(keep)
                rig.cache.resize(rig.pool.counts)  # what lay in the last slot is gone
                for held in model.held:
                    for key in [k for k in held if k not in rig.cache]:
                        del held[key]
            elif len(ids) > rig.pool.counts[of_class]:
                assert not rig.use(layer, ids)
                with pytest.raises(BudgetError):
                    rig.use_python(layer, ids)
            else:
                if what == "python" or not rig.use(layer, ids):
                    rig.use_python(layer, ids)
                model.demand(of_class, [ExpertKey(layer, e) for e in ids])
        held = {key for of_class in model.held for key in of_class}
        keys = [ExpertKey(m.layer, e) for m in rig.layers for e in range(m.n_experts)]
        assert {key for key in keys if key in rig.cache} == held
        assert rig.cache.currsize == len(held)
        stats = rig.cache.stats()
        assert (stats.hits, stats.misses) == (model.hits, model.misses)
    finally:
        rig.close()


@settings(max_examples=40, deadline=None)
@given(draw=st.data(), look_limit=st.integers(0, 2))
def test_every_expert_arrives_once_with_its_bytes(draw: st.DataObject, look_limit: int) -> None:
    rig = Rig(draw)
    rig.user.experts.struct.look_limit = look_limit
    try:
        for layer in rig.layers:
            n = min(layer.n_experts, rig.pool.counts[rig.pool.class_index(layer.layer)])
            if not rig.user.acquire(layer.layer, list(range(n))):
                # All slots are free here: many reads into those are left to several threads.
                many = n * len(layer.parts) > MOST_INTO_FREE
                assert many or not all(file.direct for file in rig.direct.values())
                continue
            for part in range(len(layer.parts)):
                places = [place for group in rig.user.arrivals(part) for place in group]
                assert sorted(places) == list(range(n))
            rig.check(layer.layer, rig.user.slots)
            rig.user.release()
    finally:
        rig.close()


@settings(max_examples=30, deadline=None)
@given(draw=st.data())
def test_a_read_that_fails_is_told_and_leaves_nothing_behind(draw: st.DataObject) -> None:
    rig = Rig(draw)
    path = next(iter(rig.direct))
    whole = Path(path).read_bytes()
    layer = rig.layers[-1].layer
    expert = rig.layers[-1].n_experts - 1
    try:
        os.truncate(path, len(whole) - rig.layers[-1].parts[-1].expert_nbytes)
        if rig.user.acquire(layer, [expert]):
            assert not rig.user.wait(len(rig.layers[-1].parts) - 1)
            error = rig.user.take_error()
            assert isinstance(error, ExpertReadError)
            assert (error.path, error.errno) == (path, 0)
            rig.user.release()
            assert rig.cache.currsize == 0
            assert ExpertKey(layer, expert) not in rig.cache
        Path(path).write_bytes(whole)
        if not rig.use(layer, [expert]):
            rig.use_python(layer, [expert])
        assert ExpertKey(layer, expert) in rig.cache
    finally:
        rig.close()
