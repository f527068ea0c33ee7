"""`localmoe bench try`: how fast a model would be here, before it is downloaded."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from localmoe.cli.bench_options import AsJson, Tokens
from localmoe.cli.bench_progress import share_bar
from localmoe.cli.options import Memory, Threads, cache_dir, size_option
from localmoe.cli.terminal import console_for
from localmoe.errors import SettingsError
from localmoe.planning.sizes import format_nbytes
from localmoe.settings import Settings

HELP = """Try a known model on this machine before downloading it.

As many layers of its true shape as --disk allows are written with random weights, and decoded \
with the share of experts in memory that the whole model would have. Which experts a token uses \
is made up, or follows a recording (--trace). What the whole model would take follows: computing \
grows with the weights, waiting with the layers. The file is removed afterwards.

\b
Examples:
  localmoe bench try trinity-large --quant q4_k_m --disk 20GB
  localmoe bench try qwen3-235b --memory 16GiB --folder /mnt/nvme
"""
_DISK_BYTES = 20_000_000_000
_SPARE_BYTES = 1 << 30
"""What is left free on the disk."""

Model = Annotated[str, typer.Argument(metavar="MODEL", help="The name of a known model.")]
Quant = Annotated[
    str | None, typer.Option("--quant", metavar="NAME", help="Such as q4_k_m. Default: q4_k_m.")
]
Disk = Annotated[
    int | None,
    typer.Option(
        "--disk", metavar="SIZE", parser=size_option, help="The most to write. Default: 20GB."
    ),
]
Folder = Annotated[
    Path | None,
    typer.Option(
        "--folder",
        metavar="DIR",
        help="Where to write it: on the drive where models will lie. Default: the cache folder.",
    ),
]
TraceFile = Annotated[
    Path | None,
    typer.Option("--trace", metavar="FILE", help="Recorded routing, stretched to this model."),
]
Keep = Annotated[bool, typer.Option("--keep", help="Leave the file there, and say where.")]


def run_trial(  # noqa: PLR0913 (the command line's options are this function's parameters)
    model: Model,
    quant: Quant = None,
    disk: Disk = None,
    memory: Memory = None,
    folder: Folder = None,
    trace: TraceFile = None,
    tokens: Tokens = 32,
    threads: Threads = None,
    keep: Keep = False,
    as_json: AsJson = False,
) -> None:
    """Write, run, extrapolate, show."""
    from localmoe.bench.trial import TrialRequest, try_model
    from localmoe.cli.plan_target import default_quantization
    from localmoe.prediction.trace_reader import read_trace
    from localmoe.synthetic.models import config_named
    from localmoe.synthetic.quantization import quantization_named

    config = config_named(model)
    request = TrialRequest(
        config,
        quantization_named(quant or default_quantization(config)),
        Settings(memory_bytes=memory, threads=threads),
        tokens,
        read_trace(trace) if trace else None,
    )
    where = folder or cache_dir()
    with _scratch(where, keep) as path, share_bar() as progress:
        room = _room(where, disk or _DISK_BYTES)
        answer = try_model(request, path, room, progress)
    if as_json:
        typer.echo(json.dumps(answer))
    else:
        _show(answer, path if keep else None)


def _room(folder: Path, wanted: int) -> int:
    """Return how much may be written. Raises SettingsError where the disk is full."""
    free = shutil.disk_usage(folder).free - _SPARE_BYTES
    if free <= 0:
        raise SettingsError(f"{folder} has less than {format_nbytes(_SPARE_BYTES)} free: make room")
    return min(wanted, free)


@contextmanager
def _scratch(folder: Path, keep: bool) -> Iterator[Path]:
    """Yield the path to write to; what was written is removed, also after Ctrl-C."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix="localmoe-try-", dir=folder))
    except OSError as error:
        raise SettingsError(f"cannot write into {folder}: {error.strerror}") from error
    try:
        yield made / "model.gguf"
    except OSError as error:
        shutil.rmtree(made, ignore_errors=True)
        raise SettingsError(f"cannot write into {made}: {error.strerror}") from error
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    if not keep:
        shutil.rmtree(made)


def _show(answer: dict[str, Any], kept: Path | None) -> None:
    """Print what was measured of a part, and what follows for the whole."""
    console = console_for(sys.stdout)
    table = Table.grid(padding=(0, 3))
    table.add_column()
    table.add_column(justify="right")
    for name, value in _rows(answer):
        table.add_row(name, value)
    console.print(table)
    console.print(f"\n{explanation(answer)}")
    if kept:
        console.print(f"The file was kept: {kept}")


def _rows(answer: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("layers tried", f"{answer['tried_layers']} of {answer['layers']}"),
        ("experts in memory", f"{answer['held_share']:.0%}"),
        ("found in memory", f"{answer['hit_rate']:.1%}"),
        ("read per token, all layers", f"{answer['read_bytes_per_token'] / 1e9:.2f} GB"),
        ("a token of what was tried", f"{1e3 * answer['tried_token_seconds']:.1f} ms"),
        ("of it computing", f"{1e3 * answer['tried_computing_seconds']:.1f} ms"),
        ("a token of the whole", f"{1e3 * answer['token_seconds']:.0f} ms"),
        ("decode, extrapolated", f"{answer['tokens_per_second']:.2f} tok/s"),
    ]


def explanation(answer: dict[str, Any]) -> str:
    """Say how the whole follows from the part."""
    return (
        f"{answer['model']} on this machine: {answer['tokens_per_second']:.2f} tokens per second. "
        f"Computing was multiplied by {answer['weights_ratio']:.1f}, as a token's weights are, "
        f"and waiting by {answer['moe_layers_ratio']:.1f}, as the layers with experts. "
        f"{answer['routing_source']}"
    )
