"""`localmoe pull`: a model from Hugging Face, whole and checked."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated

import typer

from localmoe.cli.progress import progress_bar
from localmoe.cli.terminal import dim_line
from localmoe.weights.checkpoint_files import CONFIG
from localmoe.weights.hub_names import hub_name
from localmoe.weights.quantized_files import SAFETENSORS, HubFile

if TYPE_CHECKING:
    from localmoe.weights.hub import Listing

HELP = """Download a model from Hugging Face.

All files of one quantization go into Hugging Face's own cache (HF_HOME), where other programs \
find them, too. A download that was broken off goes on where it stopped. Every file is compared \
with the checksum that the hub has. Afterwards the model runs by its name, without a network.

Without QUANT it is Q4_K_M, or the only one that there is. A repository without GGUF files gives \
its safetensors checkpoint: the weights that its index names, config.json, tokenizer and chat \
template. Where there are both, QUANT safetensors names that one.

\b
Examples:
  localmoe pull ggml-org/gpt-oss-120b-GGUF
  localmoe pull unsloth/GLM-4.7-GGUF:UD-Q2_K_XL
  localmoe run unsloth/GLM-4.7-GGUF:UD-Q2_K_XL --memory 100GiB
  localmoe pull Qwen/Qwen3-30B-A3B
"""

Name = Annotated[str, typer.Argument(metavar="OWNER/REPO[:QUANT]", help="What to download.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")]


def pull(name: Name, as_json: AsJson = False) -> None:
    """Look it up, check the room, download, say how to run it."""
    # The library's own bars and reports would come between.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from localmoe.weights.hub import look_up
    from localmoe.weights.hub_download import Download

    wanted = hub_name(name)
    listing = look_up(wanted)
    full = f"{listing.repository}:{listing.chosen.name}"
    if listing.chosen.name == SAFETENSORS:
        _say_what_is_missing(listing)
    try:
        with progress_bar() as progress:
            path = Download(listing, progress).run(_silent if progress else _say)
    except KeyboardInterrupt:
        dim_line(f"stopped; localmoe pull {full} goes on from here")
        raise
    if as_json:
        answer = {"name": full, "path": str(path), "bytes": listing.chosen.nbytes}
        typer.echo(json.dumps(answer))
    else:
        typer.echo(f"{full} is here: localmoe run {full}")


def _say_what_is_missing(listing: Listing) -> None:
    """Say before a long download what would keep its model from being run."""
    from localmoe.backends.opening import INSTALL_TORCH, missing_torch_packages
    from localmoe.weights.hub_checkpoint import read_remote_config

    if not read_remote_config(listing).n_experts:
        dim_line(
            f"{CONFIG} of {listing.repository} names no experts: the torch engine runs "
            "Mixture-of-Experts models alone, and dense ones as GGUF files run with llama.cpp"
        )

    if missing := missing_torch_packages():
        dim_line(
            f"Safetensors checkpoints run on torch, and {', '.join(missing)} cannot be found here: "
            f"{INSTALL_TORCH}"
        )


def _say(file: HubFile) -> None:
    """Without a bar: a line for each file."""
    dim_line(f"{file.path}, {file.nbytes / 1e9:.2f} GB")


def _silent(_: HubFile) -> None:
    """The bar says it."""
