"""`localmoe bench cache`: what a cache would find, by policy and size."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from localmoe.cli.bench_options import AsJson, Slots
from localmoe.cli.bench_predict import Text, Tokens, read_text
from localmoe.cli.bench_progress import share_bar
from localmoe.cli.demo import demo_model_path
from localmoe.cli.options import Context, ExpertsUsed, Memory, Threads
from localmoe.cli.terminal import console_for, dim_line
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

\b
Examples:
  localmoe bench cache book.moetrace --policies lru,lfu,next-use --sizes 5%,10%,25%,50%
  localmoe bench cache book.moetrace --policies lru,lru/layer --sizes 96,192 --json
  localmoe bench cache big.gguf --memory 8GiB --text book.txt
"""
_CONTEXT_TOKENS = 1024
_POLICIES = "next-use,lru,lfu,lrfu,slru,two-queue,least-stale,static,lru/layer"
Source = Annotated[
    Path | None,
    typer.Argument(metavar="[SOURCE]", show_default=False, help="A trace, or a GGUF file."),
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


def cache(  # noqa: PLR0913 (the command line's options are this function's parameters)
    source: Source = None,
    policies: PolicyList = _POLICIES,
    sizes: Sizes = "10%,25%,50%,75%",
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
    from localmoe.lab.grid import GridRequest, measure_grid
    from localmoe.lab.sizes import parse_policies, parse_slots

    names = parse_policies(policies)
    settings = Settings(
        memory_bytes=memory,
        context_tokens=context,
        threads=threads,
        slots=slots,
        experts_used=experts_used,
    )
    with share_bar() as progress:
        trace = _trace(source, settings, tokens, text, progress)
        request = GridRequest(names, parse_slots(sizes, trace))
        _say_what_is_slow()
        answer = {**describe(trace, source), "sizes": measure_grid(trace, request, progress)}
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


def describe(trace: Trace, source: Path | None) -> dict[str, Any]:
    """Return what an answer says of its trace."""
    from localmoe.prediction.score import warm_up_tokens

    return {
        "source": source.name if source else trace.model,
        "tokens": trace.n_tokens,
        "scored_tokens": trace.n_tokens - warm_up_tokens(trace),
        "layers": list(trace.layers),
        "experts_per_layer": trace.n_experts,
        "experts_used": trace.n_experts_used,
        "expert_bytes": trace.mean_expert_nbytes,
    }


def _say_what_is_slow() -> None:
    from localmoe.lab.ranked_replay import is_compiled

    if not is_compiled():
        dim_line("numba is not there: replays take longer. pip install 'localmoe[lab]' brings it.")


def _show(answer: dict[str, Any]) -> None:
    """Print a row for each policy, a column for each size: what was found."""
    sizes = answer["sizes"]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("found", no_wrap=True)
    for size in sizes:
        table.add_column(f"{size['share']:.0%}: {size['slots']}", justify="right", no_wrap=True)
    for name in sizes[0]["policies"]:
        found = [size["policies"][name] for size in sizes]
        table.add_row(name, *(f"{one['hit_rate']:.1%}" if one else "-" for one in found))
    table.add_row("without a pattern", *(f"{size['uniform_hit_rate']:.1%}" for size in sizes))
    console = console_for(sys.stdout)
    console.print(table)
    console.print(f"\n{_explanation(answer)}")


def _explanation(answer: dict[str, Any]) -> str:
    return (
        f"{answer['scored_tokens']} of {answer['tokens']} tokens were scored, in "
        f"{len(answer['layers'])} layers that use {answer['experts_used']} of "
        f"{answer['experts_per_layer']} experts. Columns: the share of experts that fit, slots. "
        "belady knows the future: no policy finds more."
    )
