"""The options that only `localmoe serve` has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from localmoe.cli.options import size_option

API_KEY_VARIABLE = "LOCALMOE_API_KEY"
Host = Annotated[
    str,
    typer.Option(
        metavar="ADDRESS",
        help="Where to listen. Any other address than this machine's own needs a key.",
    ),
]
Port = Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0 takes any that is free.")]
Names = Annotated[
    list[str] | None,
    typer.Option(
        "--name",
        metavar="NAME",
        help="What requests call the model; may be given several times, and * stands for any. "
        "Default: the name of its file.",
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        metavar="KEY",
        envvar=API_KEY_VARIABLE,
        show_envvar=True,
        help="Serve only who sends this key. Others on this machine can read a command line: a "
        "file or the environment keeps a secret better.",
    ),
]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option("--api-key-file", metavar="FILE", help="Keys, one a line; any of them will do."),
]
AllowOrigins = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-origin",
        metavar="ORIGIN",
        help="Let web pages of this origin (https://example.com) ask, too. May be given several "
        "times. Default: none but the server's own page.",
    ),
]
Queue = Annotated[
    int,
    typer.Option(
        metavar="N", min=1, max=100_000, help="So many requests may wait; others are sent away."
    ),
]
MaxRequestSize = Annotated[
    int | None,
    typer.Option(
        "--max-request-size",
        metavar="SIZE",
        parser=size_option,
        help="Longest request. Default: 32MiB.",
    ),
]
Sessions = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Keep the state of conversations in this folder: a restart then costs no prompt.",
    ),
]
SessionsSize = Annotated[
    int | None,
    typer.Option(
        "--sessions-size",
        metavar="SIZE",
        parser=size_option,
        help="Room for them; the oldest go first. Default: 8GiB.",
    ),
]
SessionsCount = Annotated[
    int,
    typer.Option(
        "--sessions-count", metavar="N", min=1, max=100_000, help="Most conversations kept."
    ),
]
