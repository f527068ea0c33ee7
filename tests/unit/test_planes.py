"""Slots whose parts lie in planes of an engine: nothing but the part is written, planes may go."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from localmoe.cache.expert_cache import ExpertCache
from localmoe.cache.planes import PlanePool, plane_classes
from localmoe.cache.slots import SlotClass
from localmoe.cache.supply import FileSupply
from localmoe.errors import BudgetError, UnsupportedModelError
from localmoe.weights.catalog import ExpertKey, ExpertPart, Extent, MoeLayer
from storage.disk import Disk
from storage.expert_files import ExpertFiles, LayerShape

PARTS = (3000, 512, 1700)
SHAPES = (
    LayerShape(8, PARTS),
    LayerShape(8, PARTS, scattered=True),
    LayerShape(4, (1024,)),  # some of it suits direct reads
)
CANARY = 0xA5


def kind_of(layer: MoeLayer) -> object:
    return layer.part_nbytes


class Planes:
    """Planes as an engine makes them, each with bytes before and after it that nobody may touch."""

    def __init__(self, classes: tuple[SlotClass, ...]) -> None:
        self._classes = classes
        self._buffers: dict[int, list[ctypes.Array[ctypes.c_uint8]]] = {}
        self.most_at_once = 0

    def make(self, index: int, count: int) -> list[int]:
        self.check()
        self._buffers[index] = []
        for nbytes in self._classes[index].part_nbytes if count else ():
            buffer = (ctypes.c_uint8 * (count * nbytes + 2 * 4096))()
            ctypes.memset(buffer, CANARY, len(buffer))
            self._buffers[index].append(buffer)
        now = sum(len(buffers) > 0 for buffers in self._buffers.values())
        self.most_at_once = max(self.most_at_once, now)
        return [ctypes.addressof(buffer) + 4096 for buffer in self._buffers[index]]

    def check(self) -> None:
        for buffers in self._buffers.values():
            for buffer in buffers:
                assert bytes(buffer[:4096]) == bytes(buffer[-4096:]) == bytes([CANARY]) * 4096


class Rig:
    """A cache over random experts in planes; layers 0 and 1 share a class."""

    def __init__(self, directory: Path, *counts: int) -> None:
        self.experts = ExpertFiles(directory, SHAPES)
        self.disk = Disk()
        self.files = self.experts.open(self.disk)
        self.classes = plane_classes(self.experts.layers, kind_of, 1 << 20)
        self.planes = Planes(self.classes)
        self.pool = PlanePool(self.classes, counts, self.planes.make)
        supply = FileSupply(self.experts.layers, self.pool, self.files, workers=2)
        self.cache = ExpertCache(self.experts.layers, self.pool, supply)

    def check(self, layer: int, slots: dict[int, int]) -> None:
        for expert, slot in slots.items():
            lanes = self.pool.lanes(self.experts.layers[layer], 512)
            for lane, wanted in zip(lanes, self.experts.expert(layer, expert), strict=True):
                at = lane.start + slot * lane.stride_nbytes
                assert ctypes.string_at(at, len(wanted)) == wanted

    def use(self, layer: int, *ids: int) -> None:
        with self.cache.acquire(layer, ids) as lease:
            for part in range(len(self.experts.layers[layer].parts)):
                lease.wait(part)
            self.check(layer, lease.slots)

    def close(self) -> None:
        self.cache.close()
        self.pool.close()
        for file in self.files.values():
            file.close()
        self.disk.close()
        self.planes.check()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with closing(Rig(tmp_path, 5, 2)) as made:
        yield made


def test_experts_come_into_their_planes_and_touch_nothing_else(rig: Rig) -> None:
    for layer, ids in ((0, (0, 1, 2)), (1, (3, 7)), (2, (0, 3)), (1, (3, 4)), (0, (7, 2))):
        rig.use(layer, *ids)
        for held in range(3):  # what was there before is there still
            n_experts = rig.experts.layers[held].n_experts
            rig.use(held, *(e for e in range(n_experts) if ExpertKey(held, e) in rig.cache))
    assert rig.cache.stats().hits > rig.cache.stats().misses


@pytest.mark.parametrize("layer", [0, 1])
def test_a_layer_passes_whole_in_groups(rig: Rig, layer: int) -> None:
    rig.use(layer, 5, 2)
    before, seen = rig.cache.stats(), list[int]()
    with closing(rig.cache.sweep(layer, range(8))) as sweep:
        for group in sweep.groups():
            rig.check(layer, dict(group))
            seen += group
    assert set(seen[:2]) == {2, 5}
    assert sorted(seen) == list(range(8))
    stats = rig.cache.stats()
    assert (stats.hits - before.hits, stats.misses - before.misses) == (2, 6)
    assert stats.read_bytes == 8 * sum(PARTS)
    held = [e for e in range(8) if ExpertKey(layer, e) in rig.cache]
    assert {2, 5} < set(held)
    rig.use(layer, *held)
    assert rig.cache.stats().misses == stats.misses


def test_other_planes_forget_what_the_old_ones_held(rig: Rig) -> None:
    rig.use(0, 0, 1, 2)
    rig.use(2, 1, 2)
    rig.cache.resize((3, 2))
    assert (rig.pool.limits, rig.pool.nbytes) == ([3, 2], 3 * sum(PARTS) + 2 * 1024)
    assert rig.cache.currsize == 2
    rig.use(2, 1, 2)
    assert rig.cache.stats().hits == 2
    rig.use(0, 0, 1, 2)
    rig.cache.resize((5, 2))
    rig.use(0, 0, 1, 2, 3, 4)
    assert rig.cache.stats().misses == 3 + 2 + 3 + 5


def test_planes_are_not_changed_under_somebody(rig: Rig) -> None:
    with rig.cache.acquire(0, [1]), pytest.raises(BudgetError, match="in use"):
        rig.cache.resize((3, 2))


def test_old_planes_go_before_new_ones_come(rig: Rig) -> None:
    rig.planes.most_at_once = 0
    rig.cache.resize((4, 1))
    assert rig.planes.most_at_once <= 2
    assert rig.pool.limits == [4, 1]


def test_reads_of_earlier_runs_experts_end_before_their_planes_go(tmp_path: Path) -> None:
    with closing(Rig(tmp_path, 8, 2)) as rig:
        rig.disk.hold()
        rig.cache.warm_up({0: [1.0] * 8})  # type: ignore[dict-item]
        rig.disk.wait_for_reads(1)
        rig.disk.resume()
        rig.cache.resize((3, 2))
        assert rig.cache.currsize == 0
        rig.use(0, 0, 1, 2)


def test_no_plane_is_longer_than_a_buffer_may_be() -> None:
    parts = tuple(ExpertPart("p", Extent("f", 0, 8 * nbytes), nbytes) for nbytes in PARTS)
    layers = [MoeLayer(number, 8, 2, parts) for number in range(6)]
    whole = plane_classes(layers, kind_of, 1 << 30)
    assert [len(each.layers) for each in whole] == [6]
    cut = plane_classes(layers, kind_of, 2 * 8 * max(PARTS))
    assert [[m.layer for m in each.layers] for each in cut] == [[0, 3], [1, 4], [2, 5]]
    assert all(each.stride_nbytes == sum(PARTS) for each in cut)
    with pytest.raises(UnsupportedModelError, match="largest buffer"):
        plane_classes(layers, kind_of, 8 * max(PARTS) - 1)
