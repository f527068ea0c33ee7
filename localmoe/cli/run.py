"""`localmoe run`: options in, one call out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from localmoe.cli.options import Context, ExpertsUsed, Memory, RunOptions, Threads
from localmoe.cli.request import read_request

HELP = """Answer a prompt, or chat.

Without MODEL the embedded demonstration model runs. A single argument is a MODEL if it is an
existing path or ends in .gguf, else a PROMPT. What comes on standard input is added to the prompt.
With neither, on a terminal, a chat opens; /help lists its commands. Where the model file has its
own sampling values, they are the defaults.

\b
Examples:
  localmoe run                                    chat with the demonstration model
  localmoe run "Why is the sky blue?"             answer and exit
  localmoe run big.gguf --memory 8GiB             chat with a large model in 8 GiB
  localmoe run big.gguf "Summarize:" < notes.txt  a prompt and a file
"""


def run(  # noqa: PLR0913 (the command line's options are this function's parameters)
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", show_default=False, help="A GGUF file (any shard)."),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", show_default=False, help="What to answer."),
    ] = None,
    memory: Memory = None,
    context: Context = 4096,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Longest answer in tokens. Default: as long as there is room in the context.",
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            min=0,
            max=100,
            help="0 always takes the likeliest token. [default: 0.8]",
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            min=0,
            help="Choose among the k likeliest; 0: all. [default: 40]",
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            min=0,
            max=1,
            help="Choose among the likeliest that together reach this. [default: 0.95]",
        ),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            min=0,
            max=1,
            help="Drop what is below this share of the likeliest. [default: 0.05]",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="The same seed gives the same answer.")
    ] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="The system message.")] = None,
    threads: Threads = None,
    stats: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write speed, hits and memory to this file, as JSON."),
    ] = None,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Send the prompt as plain text, without a chat template."),
    ] = False,
    experts_used: ExpertsUsed = None,
) -> None:
    """Read the request, then load and answer."""
    request = read_request(model, prompt)
    options = RunOptions(
        memory_bytes=memory,
        context_tokens=context,
        threads=threads,
        experts_used=experts_used,
        max_tokens=max_tokens,
        sampling={
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "seed": seed,
        },
        system=system,
        raw=raw,
        stats_path=stats,
    )
    # Engine, template and terminal libraries take their time to import.
    from localmoe.cli.runner import execute

    execute(request, options)
