"""An expert cache over random experts on a disk that does as it is told."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from pathlib import Path

from localmoe.cache.expert_cache import ExpertCache
from localmoe.cache.lease import Lease
from localmoe.cache.slots import SlotPool, slot_classes
from localmoe.cache.supply import FileSupply
from localmoe.native.library import Library
from localmoe.weights.catalog import ExpertKey
from storage.disk import Disk
from storage.expert_files import ExpertFiles, LayerShape

PARTS = (3000, 2048, 1700)
SHAPES = (LayerShape(8, PARTS), LayerShape(8, PARTS), LayerShape(4, (1300,)))
NBYTES = sum(PARTS)


class CacheRig:
    """A cache over random experts: layers 0 and 1 share a size class, layer 2 has its own."""

    def __init__(
        self,
        directory: Path,
        counts: Sequence[int],
        workers: int,
        library: Library | None = None,
        shapes: Sequence[LayerShape] = SHAPES,
    ) -> None:
        self.experts = ExpertFiles(directory, shapes)
        self.disk = Disk()
        self.files = self.experts.open(self.disk)
        self.pool = SlotPool(slot_classes(self.experts.layers, 512), counts)
        self.supply = FileSupply(self.experts.layers, self.pool, self.files, workers)
        self.cache = ExpertCache(self.experts.layers, self.pool, self.supply, library=library)

    def use(self, layer: int, *ids: int) -> None:
        """Demand experts, check their bytes, and let go."""
        with self.cache.acquire(layer, ids) as lease:
            self.check(lease)

    def check(self, lease: Lease) -> None:
        """Wait for all parts; the slots hold what the file holds."""
        for expert, slot in lease.slots.items():
            for part, wanted in enumerate(self.experts.expert(lease.layer, expert)):
                lease.wait(part)
                assert lease.ready(part)
                start = self.cache.placement.start(lease.layer, slot, part)
                assert self.pool.memory.view[start : start + len(wanted)] == wanted

    def held(self, layer: int) -> list[int]:
        """Return the experts of a layer that are in a slot or on their way."""
        n_experts = self.experts.layers[layer].n_experts
        return [e for e in range(n_experts) if ExpertKey(layer, e) in self.cache]

    def began(self) -> list[tuple[int, int, int]]:
        """Return the reads so far, in order, as (layer, expert, part)."""
        where = {
            (extent.path, extent.offset - extent.offset % 512): (layer.layer, expert, index)
            for layer in self.experts.layers
            for index, part in enumerate(layer.parts)
            for expert in range(layer.n_experts)
            for extent in part.expert_pieces(expert)
        }
        return [where[read] for read in self.disk.began]

    def break_part(self, layer: int, expert: int, part: int) -> None:
        extent = self.experts.layers[layer].parts[part].expert_pieces(expert)[-1]
        # The middle: the enclosing blocks of the neighbours do not reach it.
        self.disk.faults[extent.path, extent.offset + extent.nbytes // 2] = errno.EIO

    def busy(self) -> Lease:
        """Hold the disk, and let a read of layer 2 keep the only worker busy."""
        self.disk.hold()
        n_before = len(self.disk.began)
        lease = self.cache.acquire(2, [0])
        self.disk.wait_for_reads(n_before + 1)
        return lease

    def close(self) -> None:
        self.disk.resume()
        self.cache.close()
        self.pool.close()
        for file in self.files.values():
            file.close()
        self.disk.close()


MakeCacheRig = Callable[..., CacheRig]
"""From numbers of slots by size class, and `workers`, to a rig."""
