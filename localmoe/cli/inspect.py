"""`localmoe inspect`: what a model's header says."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from localmoe.cli.model_argument import model_path, model_title, typed_hub_name
from localmoe.cli.progress import progress_bar
from localmoe.cli.terminal import console_for, without_controls
from localmoe.errors import ModelNotFoundError
from localmoe.planning.sizes import format_nbytes
from localmoe.weights.checkpoint_kind import is_safetensors
from localmoe.weights.hub_names import HubName

HELP = """Show what a model's header says: its form, its sizes, its tokenizer and chat template.

MODEL is a GGUF file, the folder of a safetensors checkpoint, or a name on Hugging Face; of one \
that was not pulled only headers are fetched, some megabytes.

\b
Examples:
  localmoe inspect big.gguf
  localmoe inspect big.gguf --tensors
  localmoe inspect unsloth/GLM-4.7-GGUF:Q4_K_M --json
  localmoe inspect Qwen/Qwen3-30B-A3B
"""
_TEMPLATE_LINES = 4

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A GGUF file, a safetensors folder, or OWNER/REPO[:QUANT]."
    ),
]
Tensors = Annotated[bool, typer.Option("--tensors", help="List every tensor.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def inspect_model(model: Model, tensors: Tensors = False, as_json: AsJson = False) -> None:
    """Read the headers, show them."""
    with header_file(model) as path:
        if is_safetensors(path):
            answer, rows = _checkpoint(path, tensors)
            answer["name"] = model_title(model, path)
        else:
            answer, rows = _gguf(path, tensors)
    if as_json:
        typer.echo(json.dumps({**answer, "tensors": rows} if tensors else answer))
        return
    console = console_for(sys.stdout)
    console.print(_summary(answer))
    _show_template(console, answer["chat_template"])
    for row in rows:
        console.print(Text(_line(row)))


def _gguf(path: Path, tensors: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from localmoe.weights.description import describe_model, describe_tensors
    from localmoe.weights.gguf import build_catalog
    from localmoe.weights.shards import read_shards

    headers = read_shards(path)
    catalog = build_catalog(headers)
    rows = describe_tensors(headers, catalog) if tensors else []
    return describe_model(headers, catalog), rows


def _checkpoint(path: Path, tensors: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from localmoe.weights.checkpoint_description import (
        describe_checkpoint,
        describe_stored_tensors,
    )
    from localmoe.weights.checkpoint_layout import read_layout

    layout = read_layout(path)
    rows = describe_stored_tensors(layout) if tensors else []
    return describe_checkpoint(layout), rows


@contextmanager
def header_file(model: str) -> Iterator[Path]:
    """Yield a file whose header can be read: the model's own, or a stand-in for a remote one.

    Raises ModelNotFoundError, HubError, ModelFormatError.
    """
    name = typed_hub_name(model)
    try:
        path = model_path(model)
    except ModelNotFoundError:
        if name is None:
            raise
        with remote_headers(name) as path:
            yield path
        return
    yield path


@contextmanager
def remote_headers(name: HubName) -> Iterator[Path]:
    """Yield a stand-in for a model on Hugging Face, which has its headers alone."""
    from localmoe.weights.hub import look_up
    from localmoe.weights.remote import write_stand_ins

    with tempfile.TemporaryDirectory(prefix="localmoe-headers-") as folder:
        listing = look_up(name)
        with progress_bar() as progress:
            path = write_stand_ins(listing, Path(folder), progress)
        yield path


def _summary(answer: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 3))
    table.add_column()
    table.add_column()
    for name, value in _rows(answer):
        table.add_row(name, Text(without_controls(value)))
    return table


def _rows(answer: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "name", answer["name"] or "-"
    yield "architecture", answer["architecture"]
    files = len(answer["files"])
    yield "size", f"{answer['file_bytes'] / 1e9:.2f} GB in {files} file{'s' if files > 1 else ''}"
    yield "parameters", f"{answer['parameters'] / 1e9:.2f} billion"
    yield "layers", f"{answer['layers']}, {answer['moe_layers']} of them with experts"
    if answer["moe_layers"]:
        yield "experts", f"{answer['experts_per_layer']} per layer, {answer['experts_used']} used"
        least, most = answer["smallest_expert_bytes"], answer["largest_expert_bytes"]
        sizes = format_nbytes(least) + (f" to {format_nbytes(most)}" if most > least else "")
        yield "one expert", sizes
    yield "used by every token", format_nbytes(answer["resident_bytes"])
    yield "routed experts", format_nbytes(answer["expert_bytes"])
    if answer["unused_bytes"]:
        yield "never used here", format_nbytes(answer["unused_bytes"])
    types = (f"{name} {format_nbytes(nbytes)}" for name, nbytes in answer["types"].items())
    yield "types", ", ".join(types)
    yield "context", f"{answer['context_tokens'] or 'not said'} tokens at most"
    yield "tokenizer", f"{answer['tokenizer'] or 'none'}, {answer['vocabulary'] or 0} tokens"
    if answer["sampling"]:
        yield "sampling", ", ".join(f"{k} {v:g}" for k, v in answer["sampling"].items())


def _show_template(console: Console, template: str | None) -> None:
    if template is None:
        console.print("chat template         none")
        return
    lines = without_controls(template).splitlines()
    console.print(f"chat template, {len(template)} characters:")
    for line in lines[:_TEMPLATE_LINES]:
        console.print(Text(f"  {line[:96]}", style="dim"))
    if len(lines) > _TEMPLATE_LINES:
        console.print(Text("  ...", style="dim"))


def _line(row: dict[str, Any]) -> str:
    shape = " x ".join(map(str, row["shape"]))
    return (
        f"{_one_line(row['tensor']):<40} {shape:<24} {row['type']:<8} {row['tier']:<9}"
        f"{row['nbytes']:>14} bytes at {row['offset']} of file {row['file']}"
    )


def _one_line(text: str) -> str:
    return " ".join(without_controls(text).split())
