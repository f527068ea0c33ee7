"""`localmoe bench cache`: what a cache would find, by policy and size."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer
from rich.table import Table

from localmoe.cli.bench_options import AsJson, Slots
from localmoe.cli.bench_predict import Text, Tokens, read_text
from localmoe.cli.bench_progress import share_bar
from localmoe.cli.demo import demo_model_path
from localmoe.cli.model_argument import model_path
from localmoe.cli.options import Context, ExpertsUsed, Memory, Threads
from localmoe.cli.terminal import console_for, dim_line
from localmoe.errors import SettingsError
from localmoe.replacing import replaced_file
from localmoe.settings import Progress, Settings

if TYPE_CHECKING:
    from localmoe.prediction.trace import Trace

HELP = """Replay a trace through caches: what each policy would find, at each size.

SOURCE is a trace (.moetrace, .npz, .jsonl: docs/traces.md) or a GGUF file, which then decodes
--text. belady is the best that any policy could do, since it knows the future; routing without a
pattern would find a share of slots over experts. The first quarter of the tokens does not count.

Policies: next-use, lru, lfu, lrfu, slru, two-queue, least-stale, static. With /layer behind its
name, each layer has slots of its own. lru, lfu, lrfu and static are compiled where numba is there
(pip install 'localmoe[lab]'), and fast; the others are the engine's own Python.

--device says how fast each policy would be on a drive of that class, and what reading ahead on
guesses would give there; --model stretches the trace to the shape of another model. Both rest on
assumptions, which are printed.

\b
Examples:
  localmoe bench cache book.moetrace --policies lru,lfu,next-use --sizes 5%,10%,25%,50%
  localmoe bench cache book.moetrace --policies lru,lru/layer --sizes 96,192 --json
  localmoe bench cache book.moetrace --report book.html --plot book.png
  localmoe bench cache book.moetrace --model trinity-large --device nvme-gen4
  localmoe bench cache big.gguf --memory 8GiB --text book.txt
"""
_CONTEXT_TOKENS = 1024
_DEVICES = "sata-ssd, nvme-gen3, nvme-gen4, nvme-gen5, mac-internal"
_POLICIES = "next-use,lru,lfu,lrfu,slru,two-queue,least-stale,static,lru/layer"
Source = Annotated[
    Path | None,
    typer.Argument(
        metavar="[SOURCE]",
        show_default=False,
        parser=model_path,
        help="A trace, a GGUF file, or a model that was pulled.",
    ),
]
PolicyList = Annotated[
    str, typer.Option("--policies", metavar="NAMES", help="Policies, with commas between them.")
]
Sizes = Annotated[
    str,
    typer.Option(
        "--sizes", metavar="SIZES", help="Shares of all experts, or numbers of slots, with commas."
    ),
]


DeviceName = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", show_default=False, help=f"One of {_DEVICES}."),
]
ShapeName = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        show_default=False,
        help="Stretch the trace to the shape of this model, such as trinity-large or kimi-k2.",
    ),
]
ComputeMs = Annotated[
    float | None,
    typer.Option(
        "--compute-ms",
        metavar="X",
        min=0.001,
        show_default=False,
        help="What a token takes with all experts in memory, as `bench decode` measures it. "
        "Default: going through the weights at the speed of memory.",
    ),
]
ReportFile = Annotated[
    Path | None,
    typer.Option("--report", metavar="R.html", show_default=False, help="Write one HTML file."),
]
PlotFile = Annotated[
    Path | None,
    typer.Option("--plot", metavar="P.png", show_default=False, help="Write one picture."),
]


def cache(  # noqa: PLR0913 (the command line's options are this function's parameters)
    source: Source = None,
    policies: PolicyList = _POLICIES,
    sizes: Sizes = "10%,25%,50%,75%",
    report: ReportFile = None,
    plot: PlotFile = None,
    device: DeviceName = None,
    model: ShapeName = None,
    compute_ms: ComputeMs = None,
    memory: Memory = None,
    tokens: Tokens = 256,
    text: Text = None,
    threads: Threads = None,
    context: Context = _CONTEXT_TOKENS,
    slots: Slots = None,
    experts_used: ExpertsUsed = None,
    as_json: AsJson = False,
) -> None:
    """Read or record, replay, show."""
    from localmoe.lab.devices import device_named
    from localmoe.lab.shapes import shape_named
    from localmoe.lab.sizes import parse_policies
    from localmoe.lab.study import StudyRequest, study

    request = StudyRequest(
        policies=parse_policies(policies),
        sizes=sizes,
        device=device_named(device) if device else None,
        shape=shape_named(model) if model else None,
        token_seconds=compute_ms / 1e3 if compute_ms else None,
        guesses=bool(report or plot or device),
    )
    settings = Settings(
        memory_bytes=memory,
        context_tokens=context,
        threads=threads,
        slots=slots,
        experts_used=experts_used,
    )
    with share_bar() as progress:
        trace = _trace(source, settings, tokens, text, progress)
        _say_what_is_slow()
        replayed, answer = study(trace, source.name if source else trace.model, request, progress)
    if report:
        _write_report(report, replayed, answer)
    if plot:
        _write_plot(plot, replayed, answer)
    if as_json:
        typer.echo(json.dumps(answer))
    else:
        _show(answer)


def _trace(
    source: Path | None,
    settings: Settings,
    tokens: int,
    text: Path | None,
    progress: Progress | None,
) -> Trace:
    """Return the trace that a file holds, or that a model's decoding makes."""
    from localmoe.prediction.trace_reader import is_trace, read_trace

    if source and is_trace(source):
        return read_trace(source)
    from localmoe.bench.predict import PredictRequest, follow_model

    request = PredictRequest(
        model=str(source or demo_model_path()),
        settings=settings,
        tokens=tokens,
        text=read_text(text) if text else None,
    )
    return follow_model(request, progress)[0]


def _write_report(path: Path, trace: Trace, answer: dict[str, Any]) -> None:
    from localmoe.lab.report import write_report

    page = write_report(trace, answer).encode()
    with _output(path) as file:
        file.write(page)


def _write_plot(path: Path, trace: Trace, answer: dict[str, Any]) -> None:
    from localmoe.lab.plot import write_plot

    with _output(path) as file:
        write_plot(trace, answer, file)


@contextmanager
def _output(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that is there whole or not at all. Raises SettingsError."""
    try:
        with replaced_file(path) as file:
            yield file
    except OSError as error:
        raise SettingsError(f"cannot write {path}: {error.strerror}") from error


def _say_what_is_slow() -> None:
    from localmoe.lab.ranked_replay import is_compiled

    if not is_compiled():
        dim_line("numba is not there: replays take longer. pip install 'localmoe[lab]' brings it.")


def _show(answer: dict[str, Any]) -> None:
    """Print a row for each policy, a column for each size: what was found, and how fast it is."""
    from localmoe.lab.conclusions import conclusions

    sizes = answer["sizes"]
    table = _table("found", "hit_rate", ".1%", sizes)
    table.add_row("without a pattern", *(f"{size['uniform_hit_rate']:.1%}" for size in sizes))
    console = console_for(sys.stdout)
    console.print(table)
    if "simulation" in answer:
        console.print()
        console.print(_table("tok/s", "tokens_per_second", ".2f", sizes))
        for said in answer["simulation"]["assumptions"]:
            console.print(f"- {said}")
    console.print(f"\n{_explanation(answer)}")
    for said in conclusions(answer):
        console.print(f"- {said}")


def _table(corner: str, key: str, form: str, sizes: list[dict[str, Any]]) -> Table:
    """Return a table of one figure, by policy and size."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(corner, no_wrap=True)
    for size in sizes:
        table.add_column(f"{size['share']:.0%}: {size['slots']}", justify="right", no_wrap=True)
    for name in sizes[0]["policies"]:
        found = [size["policies"][name] for size in sizes]
        table.add_row(name, *(format(one[key], form) if one else "-" for one in found))
    return table


def _explanation(answer: dict[str, Any]) -> str:
    return (
        f"{answer['scored_tokens']} of {answer['tokens']} tokens were scored, in "
        f"{len(answer['layers'])} layers that use {answer['experts_used']} of "
        f"{answer['experts_per_layer']} experts. Columns: the share of experts that fit, slots. "
        "belady knows the future: no policy finds more."
    )
