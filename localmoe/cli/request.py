"""What `localmoe run` was asked: which model, which prompt."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import typer

from localmoe.cli.hosts import launched_ranks
from localmoe.cli.model_argument import is_pulled_name, model_path
from localmoe.cli.terminal import is_interactive

DEFAULT_PROMPT = "What is a mixture of experts? Answer in two sentences."


@dataclass(frozen=True)
class Request:
    """`model` None: the demonstration model. `prompt` None: a chat on the terminal."""

    model: Path | None
    prompt: str | None
    asks_default: bool = False
    """Nobody asked anything: the prompt is `DEFAULT_PROMPT`."""


def read_request(first: str | None, second: str | None) -> Request:
    """Tell model from prompt, and add what comes on standard input.

    Raises typer.BadParameter where that is not possible.
    """
    model, prompt = _split(first, second)
    if prompt is not None and not prompt.strip():
        raise typer.BadParameter("the prompt is empty", param_hint="PROMPT")
    # mlx.launch gives every rank a standard input that never ends.
    launched = launched_ranks()
    piped = None if launched else _piped_text()
    parts = [part for part in (prompt, piped) if part is not None]
    if parts:
        return Request(model, "\n\n".join(parts))
    if launched:
        raise typer.BadParameter(
            "mlx.launch hands no text on: give a prompt, or use --hosts for a chat",
            param_hint="PROMPT",
        )
    if is_interactive():
        return Request(model, None)
    if sys.stdin is not None and sys.stdin.isatty():
        raise typer.BadParameter(
            "a chat needs a terminal for its output: give a prompt, or do not redirect the output",
            param_hint="PROMPT",
        )
    return Request(model, DEFAULT_PROMPT, asks_default=True)


def looks_like_model(text: str) -> bool:
    """Whether an argument means a model: an existing path, the name of a file, or a pulled one."""
    return (
        (bool(text) and os.path.exists(text))
        or text.lower().endswith((".gguf", ".safetensors"))
        or (".gguf" in text.lower() and os.sep in text and not any(map(str.isspace, text)))
        or is_pulled_name(text)
    )


def _split(first: str | None, second: str | None) -> tuple[Path | None, str | None]:
    if first is None:
        return None, None
    if second is None:
        return (model_path(first), None) if looks_like_model(first) else (None, first)
    if not looks_like_model(first):
        raise typer.BadParameter(
            f"{first!r} is no model file. If it belongs to the prompt, put the whole prompt in "
            f'quotes: localmoe run "{first} {second}"',
            param_hint="MODEL",
        )
    return model_path(first), second


def _piped_text() -> str | None:
    """Return what standard input holds, None for a terminal or nothing but space."""
    if sys.stdin is None or sys.stdin.isatty():
        return None
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise typer.BadParameter(
            f"standard input is no UTF-8 text: byte {error.start} cannot be read",
            param_hint="PROMPT",
        ) from error
    return text.strip("\n") if text.strip() else None
