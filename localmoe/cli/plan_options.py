"""The options of `localmoe plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="A GGUF file, a folder with one or with a safetensors checkpoint, OWNER/REPO[:QUANT] "
        "on Hugging Face, or the name of a known model.",
    ),
]
Quant = Annotated[
    str | None,
    typer.Option(
        "--quant",
        metavar="NAME",
        help="Quantization of a known model, such as q4_k_m or q8_0. Default: q4_k_m; mxfp4 for "
        "gpt-oss.",
    ),
]
MachineName = Annotated[
    str,
    typer.Option("--machine", metavar="NAME", help="For which machine: see below."),
]
MachineFile = Annotated[
    Path | None,
    typer.Option(
        "--machine-file",
        metavar="FILE",
        help="Machines of your own, as TOML.",
        envvar="LOCALMOE_MACHINES",
    ),
]
TraceFile = Annotated[
    Path | None,
    typer.Option(
        "--trace",
        metavar="FILE",
        help="What this model's tokens were routed to (localmoe trace record): gives its own hit "
        "rate.",
    ),
]
EveryModel = Annotated[bool, typer.Option("--all", help="Compare all known models on one machine.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
