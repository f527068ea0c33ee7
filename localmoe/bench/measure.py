"""This machine's own figures: its drive, its memory, its kernels. Under two minutes."""

from __future__ import annotations

import datetime
import statistics
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from localmoe.bench.expert_reads import measure_misses
from localmoe.bench.kernel_rates import KernelRequest, Kernels, measure_kernels
from localmoe.bench.machine import describe_versions
from localmoe.bench.memory_rate import measure_memory
from localmoe.bench.read_rates import DEPTHS, SIZES_NBYTES, measure_reads, scratch_file
from localmoe.bench.small_models import Run
from localmoe.bench.spread import is_doubtful
from localmoe.errors import SettingsError
from localmoe.planning.figures import Figures
from localmoe.planning.machine import available_memory_bytes, cpu_model
from localmoe.settings import Progress, available_threads

_ARRAY_NBYTES = 256 << 20
_MEMORY_SHARE = 4
"""At most a quarter of what is free is taken for measuring memory."""


@dataclass(frozen=True)
class MeasureRequest:
    """What to measure, and how much of everything."""

    folder: Path
    """On the drive where models lie; something is written to it, and removed."""
    file_nbytes: int = 1 << 30
    read_seconds: float = 0.4
    """For each size and depth."""
    sizes: tuple[int, ...] = SIZES_NBYTES
    depths: tuple[int, ...] = DEPTHS
    part_sizes: tuple[int, ...] = (16 << 10, *SIZES_NBYTES)
    array_nbytes: int = _ARRAY_NBYTES
    kernels: KernelRequest = field(default_factory=KernelRequest)


def measure_machine(request: MeasureRequest, run: Run, progress: Progress | None = None) -> Figures:
    """Measure all of it. `run` measures a model in a process of its own.

    `progress(stage, done, total)` hears of each stage. Raises SettingsError where the folder cannot
    be used, LocalMoeError.
    """
    with scratch_file(request.folder, request.file_nbytes, progress) as path:
        reads = measure_reads(
            path, request.read_seconds, progress, sizes=request.sizes, depths=request.depths
        )
        misses, doubtful_misses = measure_misses(
            path, request.read_seconds, progress, sizes=request.part_sizes
        )
    cores = available_threads()
    if progress:
        progress("reading memory", 0, 1)
    room = available_memory_bytes() // _MEMORY_SHARE // cores
    array_nbytes = max(1 << 20, min(request.array_nbytes, room))
    together, alone = measure_memory(cores, array_nbytes), measure_memory(1, array_nbytes)
    memory = {"memory": together, "memory, one core": alone}
    kernels = _kernels(request, run, progress)
    return Figures(
        cpu=cpu_model(),
        cores=cores,
        memory_bytes=int(psutil.virtual_memory().total),
        measured_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        version=describe_versions()["localmoe"],
        drive=str(request.folder),
        is_direct=reads.is_direct,
        memory_bytes_per_second=statistics.median(together),
        core_memory_bytes_per_second=statistics.median(alone),
        **asdict(kernels.costs),
        reads=reads.points,
        misses=misses,
        kernels=kernels.kernels,
        failed=kernels.failed,
        doubtful=(
            *reads.doubtful,
            *doubtful_misses,
            *(name for name, rates in memory.items() if is_doubtful(rates)),
            *kernels.doubtful,
        ),
    )


def _kernels(request: MeasureRequest, run: Run, progress: Progress | None) -> Kernels:
    try:
        with tempfile.TemporaryDirectory(prefix="localmoe-measure-", dir=request.folder) as made:
            return measure_kernels(Path(made), request.kernels, run, progress)
    except OSError as error:
        raise SettingsError(f"cannot measure in {request.folder}: {error.strerror}") from error
