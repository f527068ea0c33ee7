"""How fast a drive delivers direct reads, by their size and by how many there are at once."""

from __future__ import annotations

import os
import random
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from localmoe.bench.device import Choose, timed_reads
from localmoe.bench.spread import is_doubtful
from localmoe.cache.direct_file import DirectFile
from localmoe.cache.memory import HostMemory, round_up
from localmoe.errors import SettingsError
from localmoe.planning.read_rates import ReadPoint
from localmoe.planning.sizes import format_nbytes
from localmoe.settings import Progress
from localmoe.weights.catalog import Extent

SIZES_NBYTES = (64 << 10, 256 << 10, 1 << 20, 4 << 20)
DEPTHS = (1, 2, 4, 8, 16, 32)
STAGE = "reading"
_PIECE_NBYTES = 16 << 20
_SPARE_BYTES = 256 << 20
_SAMPLES = 3


class Reads(NamedTuple):
    """What was found of a drive."""

    points: tuple[ReadPoint, ...]
    is_direct: bool
    """Whether the reads went past the page cache."""
    doubtful: tuple[str, ...]
    """Points whose samples lie far apart, named for a person."""


@contextmanager
def scratch_file(folder: Path, nbytes: int, progress: Progress | None = None) -> Iterator[Path]:
    """Yield a file of random bytes on a drive; it is gone afterwards, also after Ctrl-C.

    Raises SettingsError where there is no room, or the folder cannot be written to.
    """
    try:
        room = os.statvfs(folder)
        free = room.f_bavail * room.f_frsize
        if free < nbytes + _SPARE_BYTES:
            raise SettingsError(
                f"{folder} has {format_nbytes(free)} free, and measuring needs "
                f"{format_nbytes(nbytes + _SPARE_BYTES)}: make room, or name another --disk"
            )
        with tempfile.TemporaryDirectory(prefix="localmoe-measure-", dir=folder) as made:
            path = Path(made) / "random"
            _fill(path, nbytes, progress)
            yield path
    except OSError as error:
        raise SettingsError(f"cannot measure in {folder}: {error.strerror}") from error


def _fill(path: Path, nbytes: int, progress: Progress | None) -> None:
    """Write what no drive and no file system can make shorter."""
    with path.open("wb") as file:
        for done in range(0, nbytes, _PIECE_NBYTES):
            file.write(random.randbytes(min(_PIECE_NBYTES, nbytes - done)))
            if progress:
                progress("writing", done, nbytes)
        file.flush()
        os.fsync(file.fileno())


def measure_reads(
    path: Path,
    seconds: float,
    progress: Progress | None = None,
    *,
    sizes: Sequence[int] = SIZES_NBYTES,
    depths: Sequence[int] = DEPTHS,
) -> Reads:
    """Read the file at random places, `seconds` long for each size and depth, in a few samples.

    Raises ExpertReadError.
    """
    file = DirectFile(str(path))
    length = path.stat().st_size
    points, doubtful = [], []
    try:
        cases = [(size, depth) for size in sizes if size <= length for depth in depths]
        for done, (size, depth) in enumerate(cases):
            if progress:
                progress(STAGE, done, len(cases))
            rates = _rates(file, length, size, depth, seconds / _SAMPLES)
            points.append(ReadPoint(size, depth, statistics.median(rates)))
            if is_doubtful(rates):
                doubtful.append(f"reads of {format_nbytes(size)}, {depth} at once")
    finally:
        file.close()
    return Reads(tuple(points), file.direct, tuple(doubtful))


def _rates(file: DirectFile, length: int, nbytes: int, depth: int, seconds: float) -> list[float]:
    memory = HostMemory(round_up(nbytes + 2 * 4096, 4096) * depth)
    try:
        memory.prefault()
        chooser = partial(_chooser, file.path, length, nbytes)
        samples = (
            timed_reads({file.path: file}, chooser, memory, depth, seconds) for _ in range(_SAMPLES)
        )
        return [sample.bytes_per_second for sample in samples]
    finally:
        memory.close()


def _chooser(path: str, length: int, nbytes: int, worker: int) -> Choose:
    rng = random.Random(worker)
    return lambda: Extent(path, rng.randrange(length // nbytes) * nbytes, nbytes)
