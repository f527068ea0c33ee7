"""Where in the slots each part of each expert belongs, and the reads that bring it there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from localmoe.cache.reader import Job, Load
from localmoe.cache.slots import SlotLayout
from localmoe.weights.catalog import ExpertPart, Extent, MoeLayer


class Placement:
    """`block` is the alignment of direct reads; parts lie in their slots so as to suit it."""

    def __init__(self, layers: Iterable[MoeLayer], pool: SlotLayout, block: int) -> None:
        self.pool, self._block = pool, block
        self._layers = {layer.layer: layer for layer in layers}
        self._lanes = {number: pool.lanes(layer, block) for number, layer in self._layers.items()}

    def data_start(self, layer: int, part: int) -> int:
        """Return where in its slot a part's bytes begin."""
        first_slot = self.pool.start(self.pool.class_index(layer), 0)
        return self._lanes[layer][part].start - first_slot

    def start(self, layer: int, slot: int, part: int) -> int:
        """Return where the bytes of a part begin for the expert of a layer in this slot."""
        lane = self._lanes[layer][part]
        return lane.start + slot * lane.stride_nbytes

    def jobs(self, loads: Iterable[Load]) -> Iterator[Job]:
        """Return the reads of whole experts of one layer, in the order in which parts are used."""
        loads = list(loads)
        if loads:
            for part in range(len(self._layers[loads[0].key.layer].parts)):
                yield from self.part_jobs(loads, part, part)

    def part_jobs(self, loads: Iterable[Load], part: int, load_part: int = 0) -> Iterator[Job]:
        """Return the reads of one part of experts; for their loads it is number `load_part`."""
        for load in loads:
            layer, expert = load.key
            lane = self._lanes[layer][part]
            start = self.start(layer, load.slot, part)
            found = self._layers[layer].parts[part]
            if isinstance(found, ExpertPart) and not lane.tight:
                yield Job(found.expert_extent(expert), start, load, load_part)
                continue
            room = None if lane.tight else range(start, start + found.expert_nbytes)
            for extent in found.expert_pieces(expert):
                yield Job(extent, start, load, load_part, not self._suits(extent, start, room))
                start += extent.nbytes

    def _suits(self, extent: Extent, start: int, room: range | None) -> bool:
        """Whether a direct read to `start` writes nothing that others use but this piece.

        The pieces of a part lie one right after the other; around its room there is slack. None:
        there is no slack anywhere.
        """
        stop = start + extent.nbytes
        first, last = (room.start, room.stop) if room is not None else (-1, -1)
        return (
            (extent.offset - start) % self._block == 0
            and (start == first or start % self._block == 0)
            and (stop == last or stop % self._block == 0)
        )
