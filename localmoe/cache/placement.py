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
        self._data_starts = {
            number: tuple(pool.data_start(layer, part, block) for part in range(len(layer.parts)))
            for number, layer in self._layers.items()
        }

    def data_start(self, layer: int, part: int) -> int:
        """Return where in its slot a part's bytes begin."""
        return self._data_starts[layer][part]

    def start(self, layer: int, slot: int, part: int) -> int:
        """Return where the bytes of a part begin for the expert of a layer in this slot."""
        start = self.pool.start(self.pool.class_index(layer), slot)
        return start + self._data_starts[layer][part]

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
            start = self.start(layer, load.slot, part)
            found = self._layers[layer].parts[part]
            if isinstance(found, ExpertPart):
                yield Job(found.expert_extent(expert), start, load, load_part)
                continue
            room = range(start, start + found.expert_nbytes)
            for extent in found.expert_pieces(expert):
                yield Job(extent, start, load, load_part, not self._suits(extent, start, room))
                start += extent.nbytes

    def _suits(self, extent: Extent, start: int, room: range) -> bool:
        """Whether a direct read to `start` writes nothing in the part's room but this piece.

        The pieces of a part lie one right after the other; around the part there is slack.
        """
        stop = start + extent.nbytes
        return (
            (extent.offset - start) % self._block == 0
            and (start == room.start or start % self._block == 0)
            and (stop == room.stop or stop % self._block == 0)
        )
