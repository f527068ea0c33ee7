"""Where in the slots each part of each expert belongs, and the reads that bring it there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from localmoe.cache.reader import Job, Load
from localmoe.cache.slots import SlotPool
from localmoe.weights.catalog import MoeLayer


class Placement:
    """`block` is the alignment of direct reads; parts lie in their slots so as to suit it."""

    def __init__(self, layers: Iterable[MoeLayer], pool: SlotPool, block: int) -> None:
        self.pool = pool
        self._layers = {layer.layer: layer for layer in layers}
        self._data_starts = {
            number: tuple(pool.data_start(layer, part, block) for part in range(len(layer.parts)))
            for number, layer in self._layers.items()
        }

    def data_start(self, layer: int, part: int) -> int:
        """Return where in its slot a part's bytes begin."""
        return self._data_starts[layer][part]

    def jobs(self, loads: Iterable[Load]) -> Iterator[Job]:
        """Return the reads of whole experts of one layer, in the order in which parts are used."""
        loads = list(loads)
        if loads:
            for part in range(len(self._layers[loads[0].key.layer].parts)):
                for load in loads:
                    yield self.job(load, part, part)

    def job(self, load: Load, part: int, load_part: int = 0) -> Job:
        """Return the read of one part; for the load it is number `load_part`."""
        layer = load.key.layer
        start = self.pool.start(self.pool.class_index(layer), load.slot)
        extent = self._layers[layer].parts[part].expert_extent(load.key.expert)
        return Job(extent, start + self._data_starts[layer][part], load, load_part)
