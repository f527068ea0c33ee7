"""How fast the device delivers experts when nothing else is done."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from localmoe.cache.direct_file import DirectFile
from localmoe.cache.memory import HostMemory, round_up
from localmoe.cache.reader import PIECE_NBYTES
from localmoe.weights.catalog import Catalog, Extent

Choose = Callable[[], Extent]
"""Names what is read next."""
_MEMORY_NBYTES = 24 << 20
"""Less than the margin that every budget keeps: the engine is still loaded."""


@dataclass(frozen=True)
class DeviceSpeed:
    """Direct reads of expert parts at random positions, several at a time."""

    read_bytes: int
    reads: int
    seconds: float

    @property
    def bytes_per_second(self) -> float:
        """What the device delivers to a decoder that computes nothing."""
        return self.read_bytes / self.seconds

    @property
    def mean_read_nbytes(self) -> float:
        """Average length of one read."""
        return self.read_bytes / self.reads


def measure_device(catalog: Catalog, *, workers: int, seconds: float) -> DeviceSpeed:
    """Read parts of random experts into reused memory, as the expert cache does on misses.

    Blocks for about `seconds`. Longer parts are read in the reader's pieces. Raises
    ExpertReadError.
    """
    files = {path: DirectFile(path) for path in catalog.paths}
    block = max(file.block for file in files.values())
    longest = max(part.expert_nbytes for layer in catalog.layers for part in layer.parts)
    nbytes = min(longest, PIECE_NBYTES, _MEMORY_NBYTES // workers)
    stride = round_up(nbytes, block) + 2 * max(block, 4096)
    memory = HostMemory(round_up(stride, 4096) * workers)
    try:
        memory.prefault()
        return timed_reads(files, partial(_chooser, catalog, nbytes), memory, workers, seconds)
    finally:
        memory.close()
        for file in files.values():
            file.close()


def timed_reads(
    files: Mapping[str, DirectFile],
    make_chooser: Callable[[int], Choose],
    memory: HostMemory,
    workers: int,
    seconds: float,
) -> DeviceSpeed:
    """Read for so long what choosers name, each worker into its share of the memory.

    `make_chooser` gets the number of a worker. Raises ExpertReadError.
    """
    stride = memory.nbytes // workers
    began = time.perf_counter()
    deadline = began + seconds

    def work(worker: int) -> tuple[int, int]:
        choose = make_chooser(worker)
        total = reads = 0
        while not reads or time.perf_counter() < deadline:
            extent = choose()
            file = files[extent.path]
            # Placed like the file modulo the block, as in a slot: no copy after the read.
            start = worker * stride + extent.offset % file.block
            file.read(memory, start, extent.offset, extent.nbytes)
            total, reads = total + extent.nbytes, reads + 1
        return total, reads

    with ThreadPoolExecutor(workers, thread_name_prefix="localmoe-device") as pool:
        done = list(pool.map(work, range(workers)))
    elapsed = time.perf_counter() - began
    return DeviceSpeed(sum(d[0] for d in done), sum(d[1] for d in done), elapsed)


def _chooser(catalog: Catalog, nbytes: int, seed: int) -> Choose:
    """Return a function that names a run of bytes of a random expert's part, or a piece of it."""
    rng = random.Random(seed)
    parts = [(layer, part) for layer in catalog.layers for part in layer.parts]

    def choose() -> Extent:
        layer, part = rng.choice(parts)
        pieces = part.expert_pieces(rng.randrange(layer.n_experts))
        path, offset, length = rng.choice(pieces)
        if length <= nbytes:
            return Extent(path, offset, length)
        return Extent(path, offset + rng.randrange(length // nbytes) * nbytes, nbytes)

    return choose
