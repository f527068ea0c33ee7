"""`localmoe bench measure`: this machine's own figures, for plans and for the engine."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from localmoe.cli.bench_options import AsJson
from localmoe.cli.bench_progress import share_bar
from localmoe.cli.options import Threads, cache_dir, figures_dir
from localmoe.cli.terminal import console_for, dim_line, without_controls
from localmoe.errors import SettingsError
from localmoe.planning.figures import Figures, figures_path, read_figures
from localmoe.planning.read_rates import ReadPoint
from localmoe.planning.sizes import format_nbytes

if TYPE_CHECKING:
    from localmoe.bench.request import DecodeRequest

HELP = """Measure this machine: how fast its drive, its memory and its processor are. Two minutes.

Direct reads of several sizes and so many at once, from a file of random bytes that is written to \
the drive and removed; memory, gone through by one core and by all; and weights of each \
quantization, multiplied by the engine itself in small models with random weights. The figures \
are kept, for localmoe plan and for the number of reads that the engine keeps under way. Nothing \
else should run meanwhile.

\b
Examples:
  localmoe bench measure                      the drive of the cache folder
  localmoe bench measure --disk /mnt/models   another drive
  localmoe bench measure --show               what was measured before
"""
_CHILD = (sys.executable, "-m", "localmoe.cli.bench_child")

Disk = Annotated[
    Path | None,
    typer.Option(
        "--disk",
        metavar="DIR",
        help="A folder on the drive where models lie, or a model there. Default: the cache folder.",
    ),
]
Show = Annotated[bool, typer.Option("--show", help="Print what was measured before.")]
Quick = Annotated[bool, typer.Option("--quick", help="Seconds instead of minutes, and less exact.")]


def measure(
    disk: Disk = None,
    threads: Threads = None,
    show: Show = False,
    quick: Quick = False,
    as_json: AsJson = False,
) -> None:
    """Measure and keep, or read what is kept; print it."""
    folder = disk_folder(disk)
    path = figures_path(figures_dir(), folder)
    if show:
        figures = read_figures(path)
        if figures is None:
            raise SettingsError(
                f"nothing was measured yet of the drive of {folder}: localmoe bench measure does it"
            )
    else:
        figures = _measure(folder, threads, quick)
        figures.write(path)
    if as_json:
        typer.echo(json.dumps(asdict(figures)))
        return
    _print(figures)
    for name, reason in figures.failed.items():
        dim_line(without_controls(f"{name}: {reason}"))


def disk_folder(disk: Path | None) -> Path:
    """Return the folder whose drive is meant: that of a file, or the one for files of ours.

    Raises SettingsError where there is no such thing: another drive would be measured for it.
    """
    if disk is None:
        return cache_dir()
    if not os.path.exists(disk):
        raise SettingsError(f"there is no {disk}: name a folder on the drive, or a model there")
    return disk if os.path.isdir(disk) else disk.absolute().parent


def _measure(folder: Path, threads: int | None, quick: bool) -> Figures:
    from localmoe.bench.kernel_rates import KernelRequest
    from localmoe.bench.measure import MeasureRequest, measure_machine
    from localmoe.bench.process import run_child

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"cannot measure in {folder}: {error.strerror}") from error

    def run(request: DecodeRequest) -> dict[str, Any] | None:
        return run_child(_CHILD, request, os.environ)

    kernels = KernelRequest(threads=threads)
    request = MeasureRequest(folder, kernels=kernels)
    if quick:
        few = KernelRequest(8, 8, 32, ("Q4_K", "Q8_0"), threads)
        request = MeasureRequest(
            *(folder, 64 << 20, 0.02, (256 << 10, 1 << 20), (1, 4), (64 << 10, 1 << 20)),
            *(16 << 20, few),
        )
    with share_bar() as progress:
        return measure_machine(request, run, progress)


def _print(figures: Figures) -> None:
    console = console_for(sys.stdout)
    said = (
        f"{figures.cpu}, {figures.cores} cores, {format_nbytes(figures.memory_bytes)} of memory; "
        f"measured {figures.measured_at[:16].replace('T', ' ')} UTC\n\n"
        f"Direct reads from the drive of {figures.drive}, GB/s"
    )
    console.print(without_controls(said), markup=False)
    if not figures.is_direct:
        console.print("(this file system has no direct reads: the page cache took part)")
    console.print(_reads(figures.reads))
    if figures.misses:
        console.print("\nExperts that are missed, GB/s by the size of a part")
        console.print(_reads(figures.misses))
    console.print("\nWeights in memory")
    console.print(_kernels(figures))
    console.print(f"\n{_words(figures)}")
    if figures.doubtful:
        names = without_controls(", ".join(figures.doubtful))
        console.print(
            f"\nDoubtful, as samples lay far apart: {names}. Something else was running; measure "
            "again when nothing is.",
            markup=False,
        )


def _reads(points: Sequence[ReadPoint]) -> Table:
    depths = sorted({point.depth for point in points})
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("size")
    for depth in depths:
        table.add_column(f"{depth} at once", justify="right")
    for size in sorted({point.nbytes for point in points}):
        rates = {p.depth: p.bytes_per_second for p in points if p.nbytes == size}
        cells = (f"{rates[depth] / 1e9:.2f}" if depth in rates else "-" for depth in depths)
        table.add_row(format_nbytes(size), *cells)
    return table


def _kernels(figures: Figures) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("type", "one token, GB/s", "many tokens, GFLOP/s"):
        table.add_column(title, justify="left" if title == "type" else "right")
    for name, kernel in figures.kernels.items():
        decode, prefill = kernel.decode_bytes_per_second, kernel.prefill_operations_per_second
        table.add_row(name, f"{decode / 1e9:.1f}", f"{prefill / 1e9:.0f}")
    return table


def _words(figures: Figures) -> str:
    memory, core = figures.memory_bytes_per_second, figures.core_memory_bytes_per_second
    said = []
    if memory and core:
        said.append(f"Memory: {memory / 1e9:.1f} GB/s, one core alone {core / 1e9:.1f}.")
    if figures.layer_seconds:
        said.append(f"A layer of a token takes {1e6 * figures.layer_seconds:.0f} us beside it.")
    if figures.streamed_layer_seconds or figures.streamed_expert_seconds:
        more = 1e6 * (figures.streamed_layer_seconds or 0.0)
        each = 1e6 * (figures.streamed_expert_seconds or 0.0)
        said.append(f"Where its experts are streamed, {more:.0f} us more, and {each:.1f} for each.")
    if figures.missed_layer_seconds:
        more = 1e6 * figures.missed_layer_seconds
        said.append(f"Where some are missing, {more:.0f} us more beside waiting.")
    if figures.row_seconds:
        said.append(f"A row of a matrix takes {1e9 * figures.row_seconds:.1f} ns beside it.")
    if figures.attention_bytes_per_second:
        rate = figures.attention_bytes_per_second
        said.append(f"Each head's keys and values: {rate / 1e9:.1f} GB/s.")
    return " ".join(said)
