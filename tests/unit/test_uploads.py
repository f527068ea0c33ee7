"""Experts on a device: every byte that is computed with is the right one, whatever runs first."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from localmoe.cache.expert_cache import ExpertCache
from localmoe.cache.lease import Lease
from localmoe.cache.slots import SlotLayout, SlotPool, slot_classes
from localmoe.cache.supply import FileSupply
from localmoe.cache.sweep import Sweep
from localmoe.cache.uploads import Uploads
from localmoe.errors import BudgetError, ExpertReadError
from localmoe.weights.catalog import ExpertKey
from storage.disk import Disk
from storage.expert_files import ExpertFiles, LayerShape
from storage.late_device import LateDevice

PARTS = (3000, 2048)
SHAPES = (
    LayerShape(8, PARTS),
    LayerShape(8, PARTS, scattered=True),
    LayerShape(4, (1300, 700), scattered=True),
)


class TwoLevels:
    """A cache on a late device, over one in host memory, over files on a disk."""

    def __init__(
        self,
        directory: Path,
        above: tuple[int, int] = (5, 2),
        below: tuple[int, int] = (9, 4),
        seed: int = 0,
        *,
        exclusive: bool = False,
        orders: bool = True,
    ) -> None:
        self.experts = ExpertFiles(directory, SHAPES)
        self.disk = Disk()
        self.files = self.experts.open(self.disk)
        layers = self.experts.layers
        self.pool = SlotPool(slot_classes(layers, 512), below)
        self.below = ExpertCache(layers, self.pool, FileSupply(layers, self.pool, self.files))
        self.slots = SlotLayout(slot_classes(layers, 1), above)
        memory = bytearray(self.slots.nbytes)
        self.device = LateDevice(self.pool.memory.view, memory, seed, orders=orders)
        self.supply = Uploads(layers, self.slots, self.below, self.device, exclusive=exclusive)
        self.cache = ExpertCache(layers, self.slots, self.supply)
        self.n_wrong = self.n_right = 0

    def expect(self, layer: int, expert: int, slot: int, part: int) -> None:
        """Compute with a part: what lies in the slot by then is compared with the file."""
        start = self.cache.placement.start(layer, slot, part)
        wanted = self.experts.expert(layer, expert)[part]

        def look() -> None:
            right = self.device.memory[start : start + len(wanted)] == wanted
            self.n_right += right
            self.n_wrong += not right

        self.device.compute(look)

    def use(self, layer: int, ids: list[int]) -> None:
        """Compute with all parts of these experts of a layer, as an engine does."""
        fits = self.cache.fits(layer, ids)
        held = self.cache.acquire(layer, ids) if fits else self.cache.sweep(layer, ids)
        with closing(held):
            for part in range(len(PARTS)):
                for group in self._groups(held, part):
                    for expert, slot in group.items():
                        self.expect(layer, expert, slot, part)
                    self.device.used()

    def _groups(self, held: Lease | Sweep, part: int) -> Iterator[dict[int, int]]:
        if isinstance(held, Sweep):
            yield from (dict(group) for group in held.passes(part))
            return
        experts = list(held.slots)
        for places in held.arrivals(part, experts):
            yield {experts[place]: held.slots[experts[place]] for place in places}

    def close(self) -> None:
        self.device.finish()
        self.cache.close()
        self.below.close()
        self.pool.close()
        for file in self.files.values():
            file.close()
        self.disk.close()


@contextmanager
def levels(directory: Path, **options: object) -> Iterator[TwoLevels]:
    found = TwoLevels(directory, **options)  # type: ignore[arg-type]
    try:
        yield found
    finally:
        found.disk.resume()
        found.close()


def use_at_random(two: TwoLevels, seed: int, steps: int = 60) -> None:
    """Ask for experts, more than fit among them, while the device does some work now and then."""
    source = random.Random(seed)
    for _ in range(steps):
        layer = source.randrange(3)
        n_experts = two.experts.layers[layer].n_experts
        ids = source.sample(range(n_experts), source.randint(1, n_experts))
        two.use(layer, ids)
        two.device.work(source.choice((0, 0, 5, 50)))


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_what_is_computed_with_is_what_the_file_holds(
    tmp_path: Path, seed: int, exclusive: bool
) -> None:
    with levels(tmp_path, seed=seed, exclusive=exclusive) as two:
        use_at_random(two, seed)
        two.device.finish()
        assert two.n_right > 200
        assert two.n_wrong == 0


@pytest.mark.parametrize("exclusive", [False, True])
def test_without_the_order_of_the_queues_it_is_not(tmp_path: Path, exclusive: bool) -> None:
    with levels(tmp_path, orders=False, exclusive=exclusive) as two:
        use_at_random(two, 0)
        two.device.finish()
        assert two.n_wrong > 0


def test_a_hit_copies_nothing(tmp_path: Path) -> None:
    with levels(tmp_path) as two:
        two.use(0, [1, 2])
        copied, read = two.device.copied_nbytes, two.below.stats().read_bytes
        assert copied == read == 2 * sum(PARTS)
        two.use(0, [2, 1])
        assert two.device.copied_nbytes == copied
        assert two.cache.stats().hits == 2
        assert two.cache.stats().read_bytes == copied


def test_what_host_memory_holds_is_not_read_again(tmp_path: Path) -> None:
    with levels(tmp_path) as two:
        for expert in range(7):  # the device holds five
            two.use(0, [expert])
        read = two.below.stats().read_bytes
        two.use(0, [0])
        assert two.below.stats().read_bytes == read
        assert two.below.stats().hits == 1
        assert two.cache.stats().misses == 8


def test_what_leaves_the_device_goes_to_host_memory(tmp_path: Path) -> None:
    with levels(tmp_path, above=(4, 2), below=(6, 2), exclusive=True) as two:
        for expert in range(8):  # more than one of the two can hold
            two.use(0, [expert])
            two.device.finish()
        read = two.below.stats().read_bytes
        assert read == 8 * sum(PARTS)
        for expert in range(8):
            two.use(0, [expert])
            two.device.finish()
        assert two.n_wrong == 0
        assert two.below.stats().read_bytes == read
        keys = [ExpertKey(0, expert) for expert in range(8)]
        assert sum(key in two.cache for key in keys) == 4


def test_a_failed_read_reaches_whoever_waits_and_is_tried_again(tmp_path: Path) -> None:
    with levels(tmp_path) as two:
        extent = two.experts.layers[0].parts[1].expert_pieces(3)[-1]
        fault = extent.path, extent.offset + extent.nbytes // 2
        two.disk.faults[fault] = 5
        with pytest.raises(ExpertReadError):
            two.use(0, [2, 3])
        assert ExpertKey(0, 3) not in two.cache
        del two.disk.faults[fault]
        two.use(0, [2, 3])
        two.device.finish()
        assert two.n_wrong == 0


def test_copies_give_back_what_they_hold_when_it_is_needed(tmp_path: Path) -> None:
    with levels(tmp_path, above=(8, 2), below=(4, 2)) as two:
        for first in (0, 2, 4, 6):  # nothing is copied before it must be
            lease = two.cache.acquire(0, [first, first + 1])
            lease.wait(0)
            lease.close()
        for expert in range(8):
            two.use(0, [expert])
        two.device.finish()
        assert two.n_wrong == 0


def test_more_than_host_memory_can_hold_is_refused(tmp_path: Path) -> None:
    with levels(tmp_path, above=(8, 2), below=(4, 2)) as two:
        with two.cache.acquire(0, range(6)) as lease, pytest.raises(BudgetError):
            lease.wait(0)
        two.use(0, [1, 2])
        two.device.finish()
        assert two.n_wrong == 0


def test_experts_are_copied_as_they_come(tmp_path: Path) -> None:
    with levels(tmp_path) as two:
        two.use(0, [1])
        two.disk.hold()
        with two.cache.acquire(0, [1, 2]) as lease:
            groups = lease.arrivals(0, [1, 2])
            assert next(groups) == [0]
            assert not lease.ready(0)
            two.disk.resume()
            assert next(groups) == [1]
