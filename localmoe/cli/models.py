"""`localmoe list` and `localmoe remove`: the models on this machine."""

from __future__ import annotations

import datetime
import json
import sys
from typing import Annotated

import typer
from rich.table import Table

from localmoe.cli.options import cache_dir
from localmoe.cli.terminal import console_for, is_interactive
from localmoe.errors import SettingsError
from localmoe.weights.hub_names import hub_name

LIST_HELP = """List the models on this machine: those that were pulled, and the demonstration model.

\b
Examples:
  localmoe list
  localmoe list --json
"""
REMOVE_HELP = """Remove a model that was pulled, and free its room on the disk.

With QUANT only that quantization goes. What other revisions use stays.

\b
Examples:
  localmoe remove unsloth/GLM-4.7-GGUF:UD-Q2_K_XL
  localmoe remove unsloth/GLM-4.7-GGUF --yes
  localmoe remove Qwen/Qwen3-30B-A3B:safetensors
"""

Name = Annotated[str, typer.Argument(metavar="OWNER/REPO[:QUANT]", help="What to remove.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def list_models(as_json: AsJson = False) -> None:
    """Print a row for each model, and what they take together."""
    from localmoe.weights.hub_cache import PulledModel, pulled_models

    models = pulled_models()
    for path in sorted(cache_dir().glob("smollm2-moe-*.gguf")):
        status = path.stat()
        models.append(PulledModel("(demonstration model)", path, status.st_size, status.st_atime))
    if as_json:
        rows = [
            {
                "name": model.name,
                "path": str(model.path) if model.path else None,
                "bytes": model.nbytes,
                "complete": model.is_complete,
                "last_used": _time(model.last_used),
            }
            for model in models
        ]
        typer.echo(json.dumps({"models": rows, "bytes": sum(m.nbytes for m in models)}))
        return
    console = console_for(sys.stdout)
    if not models:
        console.print("No model is here yet: localmoe pull OWNER/REPO gets one")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("model", "size", "last used", ""):
        table.add_column(title, justify="right" if title == "size" else "left", no_wrap=True)
    for model in models:
        note = "" if model.is_complete else f"not complete: localmoe pull {model.name} goes on"
        table.add_row(model.name, f"{model.nbytes / 1e9:.2f} GB", _time(model.last_used)[:10], note)
    if not sys.stdout.isatty():
        console.width = 160
    console.print(table)
    console.print(f"\n{sum(model.nbytes for model in models) / 1e9:.2f} GB together")


def remove(name: Name, yes: Yes = False) -> None:
    """Ask, remove, say what was freed."""
    from localmoe.weights.hub_cache import remove_pulled

    wanted = hub_name(name)
    if not yes:
        if not is_interactive():
            raise SettingsError(f"to remove {wanted} without being asked, add --yes")
        typer.confirm(f"Remove {wanted}?", abort=True)
    try:
        freed = remove_pulled(wanted)
    except OSError as error:
        raise SettingsError(f"cannot remove {wanted}: {error.strerror}") from error
    typer.echo(f"{wanted} is gone: {freed / 1e9:.2f} GB are free again")


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
