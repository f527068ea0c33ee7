"""`localmoe bench predict`: how well experts can be told in advance."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from localmoe.cli.bench_options import AsJson, Model, Slots
from localmoe.cli.bench_progress import share_bar
from localmoe.cli.demo import demo_model_path
from localmoe.cli.options import Context, ExpertsUsed, Memory, Threads
from localmoe.cli.terminal import console_for
from localmoe.errors import SettingsError
from localmoe.settings import Settings

HELP = """Score guesses of which experts the next layers will use. Nothing is read because of them.

Guessed is from the next layer's router, applied to the hidden state before this layer's experts;
from the experts of the token before; and from how often each was used. What counts is how many of
the experts that were not in memory were named, at three sizes of a cache.

MODEL is a GGUF file, or a recorded trace (.moetrace, .npz, .jsonl: docs/traces.md), for guesses
that it holds and those that need no hidden state. Random text says nothing about a trained model:
give it a --text.

\b
Examples:
  localmoe bench predict big.gguf --memory 8GiB --text book.txt
  localmoe bench predict --text notes.txt --tokens 500 --context 600
  localmoe bench predict routing-trace.npz --json
"""
_CONTEXT_TOKENS = 1024
Tokens = Annotated[
    int, typer.Option("--tokens", metavar="N", min=8, help="Tokens to decode, at most.")
]
Text = Annotated[
    Path | None,
    typer.Option(
        "--text",
        metavar="FILE",
        show_default=False,
        help="Decode the beginning of this text, instead of a fixed stream of random words.",
    ),
]


def predict(  # noqa: PLR0913 (the command line's options are this function's parameters)
    model: Model = None,
    memory: Memory = None,
    tokens: Tokens = 256,
    text: Text = None,
    threads: Threads = None,
    context: Context = _CONTEXT_TOKENS,
    as_json: AsJson = False,
    slots: Slots = None,
    experts_used: ExpertsUsed = None,
) -> None:
    """Score, show."""
    from localmoe.bench.predict import PredictRequest, score_model, score_trace
    from localmoe.prediction.trace_reader import is_trace

    if model and is_trace(model):
        answer = score_trace(model)
    else:
        request = PredictRequest(
            model=str(model or demo_model_path()),
            settings=Settings(
                memory_bytes=memory,
                context_tokens=context,
                threads=threads,
                slots=slots,
                experts_used=experts_used,
            ),
            tokens=tokens,
            text=read_text(text) if text else None,
        )
        with share_bar() as progress:
            answer = score_model(request, progress)
    if as_json:
        typer.echo(json.dumps(answer))
    else:
        _show(answer)


def read_text(path: Path) -> str:
    """Return a text to decode. Raises SettingsError."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise SettingsError(f"cannot read the text {path}: {error.strerror}") from error


def _show(answer: dict[str, Any]) -> None:
    """Print a row for each predictor: recall, precision of some ranks, misses named."""
    used = answer["experts_used"]
    ranks = sorted({0, used // 2, used - 1})
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("guessed from", no_wrap=True)
    for name in ("recall", *(f"#{rank + 1} true" for rank in ranks)):
        table.add_column(name, justify="right", no_wrap=True)
    for cache in next(iter(answer["predictors"].values()))["caches"]:
        table.add_column(f"at {cache['slots']}", justify="right", no_wrap=True)
    for name, score in answer["predictors"].items():
        shares = [score["recall"], *(score["rank_precision"][rank] for rank in ranks)]
        named = [cache["misses_named"] for cache in score["caches"]]
        table.add_row(name.replace("_", " "), *(f"{value:.0%}" for value in (*shares, *named)))
    console = console_for(sys.stdout)
    console.print(table)
    console.print(f"\n{_explanation(answer)}")


def _explanation(answer: dict[str, Any]) -> str:
    layers = len(answer["layers"])
    text = (
        f"{answer['scored_tokens']} tokens were scored, in {layers} layers that use "
        f"{answer['experts_used']} of {answer['experts_per_layer']} experts. "
        "The last columns say how many of the misses were named, with so many slots."
    )
    if answer["guess_seconds"]:
        text += f" A guess from a router takes {1e6 * answer['guess_seconds']:.0f} microseconds."
    if answer["unknown_layers"]:
        names = ", ".join(map(str, answer["unknown_layers"]))
        text += f" The routers of layer {names} have a form that nothing is guessed from."
    return text
