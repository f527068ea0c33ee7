"""The options that only benchmarks have."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from localmoe.bench.rounds import PEER_TOKENS_STREAMING
from localmoe.cli.model_argument import ModelFile


class Peer(StrEnum):
    """What plain llama.cpp does with the weights."""

    MMAP = "mmap"
    RAM = "ram"


Model = ModelFile
Tokens = Annotated[int, typer.Option("--tokens", metavar="N", min=1, help="Tokens to decode.")]
PromptTokens = Annotated[
    int,
    typer.Option("--prompt-tokens", metavar="N", min=1, help="Tokens of the prompt before them."),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")
]
WithPeer = Annotated[
    Peer | None,
    typer.Option(
        "--peer",
        show_default=False,
        help="Measure plain llama.cpp too, in turn, on the same file and tokens. mmap: as it "
        "comes, weights in a file mapping, repacked where memory suffices. ram: all weights read "
        "into memory, in the file's layout. It knows no --memory: only a limit of the system, such "
        "as a control group's, binds both sides.",
    ),
]
PeerTokens = Annotated[
    int | None,
    typer.Option(
        "--peer-tokens",
        metavar="N",
        min=1,
        show_default=False,
        help="Tokens the peer decodes, at most --tokens. Default: all, but only "
        f"{PEER_TOKENS_STREAMING} with mmap when the model does not fit, as each may take it "
        "seconds.",
    ),
]
Rounds = Annotated[
    int,
    typer.Option(
        "--rounds", metavar="N", min=1, help="Repeat so often, in turn; the median is shown."
    ),
]
DeviceSeconds = Annotated[
    float,
    typer.Option("--device-seconds", metavar="X", min=0, help="How long the device is read alone."),
]
Compiled = Annotated[
    bool,
    typer.Option(
        "--compiled/--no-compiled",
        help="Serve single tokens by the compiled callback, where it was built; for comparisons.",
    ),
]
Slots = Annotated[
    int | None,
    typer.Option(
        "--slots",
        metavar="N",
        min=1,
        show_default=False,
        help="Expert slots, instead of what --memory allows; for experiments.",
    ),
]
