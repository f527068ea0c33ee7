"""Fixed slots for expert bytes. Knows addresses, not policies."""

from __future__ import annotations

import os
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from localmoe.cache.memory import HUGE_PAGE_NBYTES, HostMemory, round_up
from localmoe.errors import BudgetError
from localmoe.weights.catalog import ExpertKey, MoeLayer

_KERNEL_ALIGNMENT_NBYTES = 64  # engines read a matrix with aligned vector loads
_MATRIX_ALIGNMENT_NBYTES = 32  # the least that they do with, and that GGUF files have
_PAGE_NBYTES = 4096
_LARGE_PART_NBYTES = 128 << 10
"""From here on a page of slack costs nothing, and aligned to pages reads take 5 % less time."""


@dataclass(frozen=True)
class SlotClass:
    """Layers whose experts have the same part sizes, and the layout of their slots.

    `part_starts` are offsets in a slot; `stride_nbytes` is one slot with its slack.
    """

    part_nbytes: tuple[int, ...]
    part_starts: tuple[int, ...]
    stride_nbytes: int
    layers: tuple[MoeLayer, ...]

    @property
    def n_experts(self) -> int:
        """Number of (layer, expert) pairs that share these slots."""
        return sum(layer.n_experts for layer in self.layers)

    @property
    def token_demand(self) -> int:
        """Experts of this class that one token routes to."""
        return sum(layer.n_experts_used for layer in self.layers)

    @property
    def widest_demand(self) -> int:
        """The most experts that one layer of this class can ask for in one step."""
        return max(layer.n_experts for layer in self.layers)


def slot_classes(layers: Sequence[MoeLayer], block: int) -> tuple[SlotClass, ...]:
    """Group layers by part sizes and lay out a slot for each group.

    `block` is the alignment of direct reads (1: none needed). A part gets slack of one block
    where its place or length in any of the files is no multiple of it.
    """
    groups: dict[tuple[int, ...], list[MoeLayer]] = {}
    for layer in layers:
        groups.setdefault(layer.part_nbytes, []).append(layer)
    return tuple(_lay_out(sizes, group, block) for sizes, group in groups.items())


def _lay_out(sizes: tuple[int, ...], layers: Sequence[MoeLayer], block: int) -> SlotClass:
    large = min(sizes) >= _LARGE_PART_NBYTES
    align = max(block, _PAGE_NBYTES if large else _KERNEL_ALIGNMENT_NBYTES)
    starts, position = [], 0
    for index, nbytes in enumerate(sizes):
        starts.append(position)
        exact = all(layer.parts[index].is_aligned(block) for layer in layers)
        room = nbytes if exact else round_up(nbytes, block) + block
        position = round_up(position + room, align)
    return SlotClass(sizes, tuple(starts), position, tuple(layers))


def slots_nbytes(classes: Sequence[SlotClass], counts: Sequence[int]) -> int:
    """Return the bytes of so many slots of each class."""
    return sum(n * c.stride_nbytes for n, c in zip(counts, classes, strict=True))


def share_slots(
    classes: Sequence[SlotClass], least: Sequence[int], fits: Callable[[Sequence[int]], bool]
) -> list[int] | None:
    """Give every class slots for the same fraction of its experts, as many as `fits` allows.

    No class gets fewer than `least`, or more than it has experts. Returns None when the least
    does not fit. `fits` must not turn true again as counts grow; where it allows more, no class
    gets fewer.
    """
    steps = max(c.n_experts for c in classes)

    def counts_at(step: int) -> list[int]:
        shares = (c.n_experts * step // steps for c in classes)
        return [max(pair) for pair in zip(least, shares, strict=True)]

    if not fits(counts_at(0)):
        return None
    step = bisect_left(range(1, steps + 1), True, key=lambda s: not fits(counts_at(s)))
    counts = counts_at(step)
    # The next step adds at most one slot to each class: those in front may still fit.
    for i, count in enumerate(counts_at(min(step + 1, steps))):
        grown = [*counts[:i], count, *counts[i + 1 :]]
        if not fits(grown):
            break
        counts = grown
    return counts


class SlotLayout:
    """The slots of all size classes, one after the other in one region; not the region itself.

    Slot s of class c starts at `start(c, 0) + s * stride`, and never moves. `limits` are how many
    there may be now, fewer than `counts` while memory is lent.
    """

    def __init__(self, classes: Sequence[SlotClass], counts: Sequence[int]) -> None:
        self.classes, self.counts = tuple(classes), tuple(counts)
        self.limits = list(counts)
        self._starts: list[int] = []
        self._class_of = {m.layer: i for i, c in enumerate(classes) for m in c.layers}
        self.nbytes = 0
        for slot_class, count in zip(classes, counts, strict=True):
            if count < 1:
                raise BudgetError("every size class of experts needs at least one slot")
            self._starts.append(self.nbytes)
            self.nbytes = round_up(self.nbytes + slot_class.stride_nbytes * count, 4096)

    def set_limits(self, limits: Sequence[int]) -> None:
        """Have so many slots of each class; nobody may use those beyond."""
        self.limits = list(limits)

    def grow(self) -> None:
        """Begin to make slots ready that were never used, where that takes time."""

    def stop_growing(self) -> None:
        """Leave what is not ready yet as it is, until `grow` is called again."""

    def class_index(self, layer: int) -> int:
        """Return which size class a layer belongs to."""
        return self._class_of[layer]

    def count(self, keys: Iterable[ExpertKey], class_index: int) -> int:
        """Return how many of these experts are of a size class."""
        return sum(self.class_index(key.layer) == class_index for key in keys)

    def start(self, class_index: int, slot: int) -> int:
        """Return where a slot begins in the region, in bytes."""
        return self._starts[class_index] + slot * self.classes[class_index].stride_nbytes

    def data_start(self, layer: MoeLayer, part: int, block: int) -> int:
        """Return where in a slot the bytes of this layer's part begin.

        Where all experts of the part lie alike modulo the block, that is the file's own
        remainder: direct reads then need no copy. Else, or where engines could not use a matrix
        that lies so, each is moved to the part's start.
        """
        start = self.classes[self.class_index(layer.layer)].part_starts[part]
        remainder = layer.parts[part].remainder(block)
        return start + (remainder if remainder % _MATRIX_ALIGNMENT_NBYTES == 0 else 0)


class SlotPool(SlotLayout):
    """Slots in host memory, which takes room as it is touched."""

    def __init__(self, classes: Sequence[SlotClass], counts: Sequence[int]) -> None:
        super().__init__(classes, counts)
        # An engine that is stopped in mid-layer may still look up expert numbers as slot numbers.
        guard = max(c.stride_nbytes * c.widest_demand for c in classes)
        self.memory = HostMemory(self.nbytes, guard_nbytes=guard)
        self._stopping = False
        self._growth: threading.Thread | None = None

    def grow(self) -> None:
        """Touch all slots in a thread of its own, while no core has anything better to do.

        Reads touch what they need first; what slots hold stays as it is.
        """
        if self._growth is None:
            self._growth = threading.Thread(target=self._touch, name="localmoe-slots", daemon=True)
            self._growth.start()

    def wait_grown(self) -> None:
        """Block until every slot has been touched, where `grow` was called."""
        if self._growth:
            self._growth.join()

    def stop_growing(self) -> None:
        """Leave what is not touched yet as it is, until `grow` is called again."""
        self._stopping = True
        self.wait_grown()
        self._growth, self._stopping = None, False

    def set_limits(self, limits: Sequence[int]) -> None:
        """Give back the memory of all slots beyond so many of each class.

        Nobody may use those, and nothing may be growing.
        """
        for index, (limit, before) in enumerate(zip(limits, self.limits, strict=True)):
            if before > limit:
                self.memory.release(self.start(index, limit), self.start(index, before))
        super().set_limits(limits)

    def close(self) -> None:
        """Give the memory back."""
        self.stop_growing()
        self.memory.close()

    def _touch(self) -> None:
        if hasattr(os, "SCHED_IDLE"):
            with suppress(OSError):  # refused in some containers: then it takes turns with others
                os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        for index, limit in enumerate(self.limits):
            stop = self.start(index, limit)
            for position in range(self.start(index, 0), stop, HUGE_PAGE_NBYTES):
                if self._stopping:
                    return
                self.memory.touch(position, min(position + HUGE_PAGE_NBYTES, stop))
