"""`localmoe trace`: record what a model routes to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from localmoe.cli.bench_options import AsJson, Slots
from localmoe.cli.bench_progress import share_bar
from localmoe.cli.demo import demo_model_path
from localmoe.cli.model_argument import ModelFile
from localmoe.cli.options import Context, ExpertsUsed, Memory, Threads
from localmoe.errors import SettingsError
from localmoe.settings import Settings

HELP = """Record which experts each token of some prompts is routed to, in every MoE layer.

FILE is a text; blank lines separate prompts. Each is decoded token by token from an empty context;
--generate lets the model go on from there, with the likeliest token each time. The trace is for
`localmoe bench cache` and `localmoe bench predict`; docs/traces.md has the format.

Without MODEL the embedded demonstration model is recorded.

\b
Examples:
  localmoe trace record big.gguf --memory 8GiB --prompts book.txt --out book.moetrace
  localmoe trace record --prompts notes.txt --generate 64 --out notes.moetrace
  localmoe trace record big.gguf --prompts book.txt --guesses --scores --out book.moetrace
"""
_CONTEXT_TOKENS = 1024

app = typer.Typer(help="Record routing.", no_args_is_help=True)
Model = ModelFile
Prompts = Annotated[Path, typer.Option("--prompts", metavar="FILE", help="Text to decode.")]
Out = Annotated[Path, typer.Option("--out", metavar="T.moetrace", help="The trace to write.")]
Generate = Annotated[
    int, typer.Option("--generate", metavar="N", min=0, help="Tokens to add to each prompt.")
]
Tokens = Annotated[
    int | None,
    typer.Option("--tokens", metavar="N", min=1, show_default=False, help="Tokens, at most."),
]
Scores = Annotated[bool, typer.Option("--scores", help="Record the router's scores, too.")]
WithGuesses = Annotated[
    bool, typer.Option("--guesses", help="Record what later layers' routers are guessed to do.")
]


@app.callback()
def _trace() -> None:
    """Record routing."""


@app.command("record", help=HELP)
def record(  # noqa: PLR0913 (the command line's options are this function's parameters)
    prompts: Prompts,
    out: Out,
    model: Model = None,
    generate: Generate = 0,
    tokens: Tokens = None,
    scores: Scores = False,
    guesses: WithGuesses = False,
    memory: Memory = None,
    threads: Threads = None,
    context: Context = _CONTEXT_TOKENS,
    slots: Slots = None,
    experts_used: ExpertsUsed = None,
    as_json: AsJson = False,
) -> None:
    """Read the prompts, decode, write."""
    from localmoe.bench.record import RecordRequest, read_prompts
    from localmoe.bench.record import record as write

    if out.suffix.lower() != ".moetrace":
        raise SettingsError(f"--out {out} must end in .moetrace: that is how a trace is known")
    request = RecordRequest(
        model=str(model or demo_model_path()),
        prompts=read_prompts(prompts),
        settings=Settings(
            memory_bytes=memory,
            context_tokens=context,
            threads=threads,
            slots=slots,
            experts_used=experts_used,
        ),
        generate=generate,
        most_tokens=tokens,
        scores=scores,
        guesses=guesses,
    )
    with share_bar() as progress:
        recorded = write(request, out, progress)
    if as_json:
        typer.echo(json.dumps({"trace": str(out), **recorded}))
    else:
        typer.echo(f"{out}: {recorded['tokens']} tokens, {recorded['file_bytes']} bytes")
