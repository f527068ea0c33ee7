"""Slots: layout of parts with their slack, division over size classes, places in memory."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence

import psutil
import pytest

from localmoe.cache.memory import HostMemory
from localmoe.cache.slots import (
    SlotClass,
    SlotPool,
    share_slots,
    slot_classes,
    slots_nbytes,
)
from localmoe.errors import BudgetError
from localmoe.weights.catalog import ExpertPart, Extent, MoeLayer

LARGE = 128 << 10


def layer(
    number: int, n_experts: int, part_nbytes: Sequence[int], *, used: int = 1, offset: int = 0
) -> MoeLayer:
    """Return a layer whose parts all begin at `offset` in files of their own."""
    parts = tuple(
        ExpertPart(f"part{i}", Extent(f"file{i}", offset, nbytes * n_experts), nbytes)
        for i, nbytes in enumerate(part_nbytes)
    )
    return MoeLayer(number, n_experts, used, parts)


def size_class(n_experts: int, nbytes: int, used: int = 1) -> SlotClass:
    """Return a class of one layer whose slots take exactly `nbytes`, a multiple of 64."""
    (made,) = slot_classes([layer(0, n_experts, [nbytes], used=used)], 1)
    assert made.stride_nbytes == nbytes
    return made


def divide_slots(classes: Sequence[SlotClass], nbytes: int) -> list[int] | None:
    """Share memory, with room for what one token routes to, as the planner does."""
    demand = [c.token_demand for c in classes]
    return share_slots(classes, demand, lambda counts: slots_nbytes(classes, counts) <= nbytes)


def test_layers_with_equal_parts_share_a_class() -> None:
    layers = [layer(0, 4, [64, 128]), layer(1, 4, [128, 64]), layer(2, 6, [64, 128], used=3)]
    first, second = slot_classes(layers, 512)
    assert [m.layer for m in first.layers] == [0, 2]
    assert [m.layer for m in second.layers] == [1]
    assert (first.n_experts, first.token_demand, first.widest_demand) == (10, 4, 6)


@pytest.mark.parametrize(
    ("part_nbytes", "offset", "block", "starts", "stride"),
    [
        ([512, 1024], 1024, 512, (0, 512), 1536),  # exact: no slack
        ([512, 1024], 32, 512, (0, 1024), 2560),  # a block of slack each
        ([500, 1], 0, 512, (0, 1024), 2048),
        ([500, 1], 32, 1, (0, 512), 576),  # buffered: aligned for kernels only
        ([4096], 512, 4096, (0,), 8192),
        ([LARGE, LARGE], 512, 512, (0, LARGE), 2 * LARGE),  # large: starts on pages
        ([LARGE, LARGE], 32, 512, (0, LARGE + 4096), 2 * LARGE + 8192),
        ([LARGE + 64, LARGE], 0, 1, (0, LARGE + 4096), 2 * LARGE + 4096),
    ],
)
def test_layout_of_a_slot(
    part_nbytes: list[int], offset: int, block: int, starts: tuple[int, ...], stride: int
) -> None:
    (made,) = slot_classes([layer(0, 4, part_nbytes, offset=offset)], block)
    assert (made.part_starts, made.stride_nbytes) == (starts, stride)


def test_one_unaligned_layer_gives_the_whole_class_slack() -> None:
    layers = [layer(0, 4, [512], offset=512), layer(1, 4, [512], offset=32)]
    (made,) = slot_classes(layers, 512)
    assert made.stride_nbytes == 1024


def test_divide_needs_one_tokens_demand_and_not_more() -> None:
    classes = [size_class(8, 64, used=2), size_class(8, 640, used=3)]
    least = 2 * 64 + 3 * 640
    assert divide_slots(classes, least - 1) is None
    assert divide_slots(classes, least) == [2, 3]


def test_divide_gives_every_class_the_same_fraction() -> None:
    classes = [size_class(100, 64), size_class(50, 640), size_class(10, 1280)]
    counts = [50, 25, 5]
    assert divide_slots(classes, slots_nbytes(classes, counts)) == counts


def test_divide_leaves_less_than_the_next_slot() -> None:
    classes = [size_class(128, 64), size_class(128, 1024)]
    for nbytes in range(1088, 30 * 1088, 64):
        counts = divide_slots(classes, nbytes)
        assert counts is not None
        assert nbytes - slots_nbytes(classes, counts) < 1024


def test_divide_gives_no_class_more_than_its_experts() -> None:
    classes = [size_class(3, 64), size_class(9, 640)]
    assert divide_slots(classes, 1 << 40) == [3, 9]
    assert divide_slots(classes, slots_nbytes(classes, [3, 9])) == [3, 9]


def test_share_keeps_the_least_of_each_class() -> None:
    classes = [size_class(8, 64), size_class(100, 64)]
    assert share_slots(classes, [5, 1], lambda counts: sum(counts) <= 25) == [5, 20]
    assert share_slots(classes, [5, 1], lambda counts: sum(counts) <= 5) is None


def test_slots_do_not_overlap_and_start_on_blocks() -> None:
    layers = [layer(0, 4, [500, 700]), layer(1, 5, [LARGE])]
    classes = slot_classes(layers, 512)
    pool = SlotPool(classes, [3, 2])
    ends = [
        (pool.start(i, slot), pool.start(i, slot) + classes[i].stride_nbytes)
        for i in range(2)
        for slot in range(pool.counts[i])
    ]
    assert all(a[1] <= b[0] for a, b in zip(ends, ends[1:], strict=False))
    assert ends[-1][1] <= pool.nbytes
    assert all(start % 512 == 0 for start, _ in ends)
    assert pool.start(1, 0) % 4096 == 0
    assert (pool.class_index(0), pool.class_index(1)) == (0, 1)
    pool.close()


def test_an_expert_number_taken_for_a_slot_number_reads_zeros() -> None:
    layers = [layer(0, 4, [512]), layer(1, 64, [4096])]
    pool = SlotPool(slot_classes(layers, 1), [1, 1])
    end = pool.memory.address + pool.start(1, 63) + 4096
    assert ctypes.string_at(end - 4096, 4096) == bytes(4096)
    pool.close()


def test_every_class_needs_a_slot() -> None:
    classes = [size_class(3, 64), size_class(9, 640)]
    with pytest.raises(BudgetError, match="at least one slot"):
        SlotPool(classes, [0, 4])


@pytest.mark.parametrize(
    ("nbytes", "offset", "wanted"),
    [(1024, 32, 32), (1024, 512, 0), (1000, 32, 0), (1000, 512, 0)],
)
def test_data_lies_as_in_the_file_where_all_experts_lie_alike(
    nbytes: int, offset: int, wanted: int
) -> None:
    made = layer(0, 4, [64, nbytes], offset=offset)
    pool = SlotPool(slot_classes([made], 512), [1])
    start = pool.classes[0].part_starts[1]
    assert pool.data_start(made, 1, 512) == start + wanted
    pool.close()


def big_pool() -> tuple[list[SlotClass], list[int]]:
    """Return two classes whose slots take 384 MiB together."""
    small, large = size_class(96, 2 << 20, used=2), size_class(80, 4 << 20, used=3)
    return [small, large], [96, 48]


def test_slots_take_room_as_they_are_touched() -> None:
    classes, counts = big_pool()
    process = psutil.Process()
    before = int(process.memory_info().rss)
    pool = SlotPool(classes, counts)
    assert int(process.memory_info().rss) - before < 2 << 20
    pool.memory.view[0] = 1
    pool.grow()
    pool.wait_grown()
    assert int(process.memory_info().rss) - before >= pool.nbytes
    assert pool.memory.view[0] == 1
    pool.close()


def test_a_pool_that_is_closed_stops_growing(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, touched = threading.Event(), threading.Event(), list[int]()

    def touch(_memory: HostMemory, start: int, _stop: int) -> None:
        touched.append(start)
        begun.set()
        go_on.wait(10)

    monkeypatch.setattr(HostMemory, "touch", touch)
    pool = SlotPool(*big_pool())
    pool.grow()
    assert begun.wait(10)
    closing = threading.Thread(target=pool.close)
    closing.start()
    while not pool._stopping:
        pass
    go_on.set()
    closing.join(10)
    assert len(touched) == 1


def test_slots_beyond_a_limit_give_their_memory_back_and_grow_again() -> None:
    pool = SlotPool(*big_pool())
    pool.grow()
    pool.wait_grown()
    pool.memory.view[pool.start(0, 15)], pool.memory.view[pool.start(0, 16)] = 1, 1
    before = int(psutil.Process().memory_info().rss)
    pool.stop_growing()
    pool.set_limits([16, 48])
    freed = before - int(psutil.Process().memory_info().rss)
    assert 156 << 20 <= freed <= 164 << 20
    assert (pool.limits, pool.counts) == ([16, 48], (96, 48))
    assert pool.memory.view[pool.start(0, 15)] == 1
    assert pool.memory.view[pool.start(0, 16)] == 0
    pool.set_limits([96, 48])
    pool.grow()
    pool.wait_grown()
    assert before - int(psutil.Process().memory_info().rss) < 4 << 20
    pool.close()
