"""How fast a drive delivers experts that are missed: those of a layer at once, part by part."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from localmoe.bench.spread import is_doubtful
from localmoe.cache.direct_file import DirectFile
from localmoe.cache.memory import HostMemory, round_up
from localmoe.cache.reader import Job, Load, Reader
from localmoe.planning.read_rates import ReadPoint
from localmoe.planning.sizes import format_nbytes
from localmoe.settings import Progress
from localmoe.weights.catalog import ExpertKey, Extent

AT_ONCE = (1, 2, 4, 8)
STAGE = "reading experts"
_PARTS = 3
_WORKERS = 4
_SAMPLES = 3
_ALIGNMENT_NBYTES = 32
"""Of tensors in files."""
_PAGE_NBYTES = 4096


class MissedExperts:
    """Experts at random places of a file, read by the engine's own reader into reused memory."""

    def __init__(self, file: DirectFile, reader: Reader, part_nbytes: Sequence[int]) -> None:
        """`reader` is one of this file; its memory has room for `room_nbytes` of each expert."""
        self._file, self._reader, self._part_nbytes = file, reader, tuple(part_nbytes)
        self._length, self._random = Path(file.path).stat().st_size, random.Random(0)

    @staticmethod
    def room_nbytes(part_nbytes: Sequence[int]) -> int:
        """Return how much memory one expert needs."""
        return sum(_room_nbytes(nbytes) for nbytes in part_nbytes)

    def read(self, n_experts: int, *, apart: bool = False) -> float:
        """Read so many at once; return how many seconds it took. Raises ExpertReadError.

        `apart`: through a buffer, as into slots without slack.
        """
        loads = [
            Load(ExpertKey(0, expert), expert, self._part_nbytes) for expert in range(n_experts)
        ]
        jobs = list(self._jobs(loads, apart))
        began = time.perf_counter()
        self._reader.submit(jobs)
        for load in loads:
            for part in range(len(self._part_nbytes)):
                load.wait(part)
        return time.perf_counter() - began

    def _jobs(self, loads: Sequence[Load], apart: bool) -> Iterator[Job]:
        start = 0
        for load in loads:
            for part, nbytes in enumerate(self._part_nbytes):
                last = (self._length - nbytes) // _ALIGNMENT_NBYTES
                offset = self._random.randrange(last) * _ALIGNMENT_NBYTES
                # Placed like the file modulo the block, as in a slot: no copy after the read.
                place = start + offset % self._file.block
                yield Job(Extent(self._file.path, offset, nbytes), place, load, part, apart)
                start += _room_nbytes(nbytes)


def measure_misses(
    path: Path,
    seconds: float,
    progress: Progress | None = None,
    *,
    sizes: Sequence[int],
    at_once: Sequence[int] = AT_ONCE,
) -> tuple[tuple[ReadPoint, ...], tuple[str, ...]]:
    """Return rates by the size of parts and the number of experts, and which are doubtful.

    Each takes `seconds`, in a few samples. Raises ExpertReadError.
    """
    points, doubtful = [], []
    with closing(DirectFile(str(path))) as file:
        cases = [(n, many) for n in sizes if n < path.stat().st_size for many in at_once]
        for done, (nbytes, many) in enumerate(cases):
            if progress:
                progress(STAGE, done, len(cases))
            rates = _rates(file, nbytes, many, seconds / _SAMPLES)
            points.append(ReadPoint(nbytes, many, statistics.median(rates)))
            if is_doubtful(rates):
                doubtful.append(f"experts of {format_nbytes(nbytes)} parts, {many} at once")
    return tuple(points), tuple(doubtful)


def _rates(file: DirectFile, nbytes: int, n_experts: int, seconds: float) -> list[float]:
    parts = (nbytes,) * _PARTS
    room = round_up(MissedExperts.room_nbytes(parts) * n_experts, _PAGE_NBYTES)
    with closing(HostMemory(room)) as memory:
        memory.prefault()
        with closing(Reader({file.path: file}, memory, _WORKERS)) as reader:
            missed = MissedExperts(file, reader, parts)
            return [
                _rate(missed, n_experts * sum(parts), n_experts, seconds) for _ in range(_SAMPLES)
            ]


def _rate(missed: MissedExperts, nbytes: int, n_experts: int, seconds: float) -> float:
    """Return bytes per second of waiting.

    What this thread computes meanwhile does not count: an engine begins reads in compiled code.
    """
    took = waited = count = 0.0
    while took < seconds or not count:
        began = time.thread_time()
        one = missed.read(n_experts)
        took += one
        waited += max(one / 4, one - (time.thread_time() - began))
        count += 1
    return count * nbytes / waited


def _room_nbytes(nbytes: int) -> int:
    return round_up(nbytes, _PAGE_NBYTES) + 2 * _PAGE_NBYTES
