"""What is typed as MODEL: a file, a folder, or the name of a model that was pulled."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Annotated

import typer

from localmoe.errors import ModelNotFoundError
from localmoe.weights.hub_names import HubName, parse_hub_name

_CACHED = "models--"
"""How the hub's cache calls the folder of a repository: models--OWNER--REPO."""


def model_path(text: str | Path) -> Path:
    """Return the file that is meant. Raises ModelNotFoundError, HubError.

    What exists is a path, whatever its name looks like; nothing is ever downloaded.
    """
    path = Path(text).expanduser()
    if os.path.exists(path):
        return path
    name = typed_hub_name(str(text))
    if name is None:
        return path
    from localmoe.weights.hub_cache import find_pulled

    found = find_pulled(name)
    # `localmoe list` tells when a model was used last; a cache that others own does not.
    with contextlib.suppress(PermissionError):
        os.utime(found)
    return found


def typed_hub_name(text: str) -> HubName | None:
    """Return the name on Hugging Face that is written; None: it is none, or a path."""
    if text.startswith(("/", ".", "~")) or os.path.exists(text):
        return None
    return parse_hub_name(text)


def model_title(text: str, path: Path) -> str:
    """Return what a safetensors checkpoint is called that was written so, and lies there.

    Its files have the same names as those of any other: its folder's says more, or its name on
    Hugging Face, which the hub's cache keeps in the path.
    """
    name = typed_hub_name(text)
    if name is not None:
        return str(name).partition("/")[2]
    folder = (path if path.is_dir() else path.parent).absolute()
    for part in folder.parts:
        if part.startswith(_CACHED):
            return part.removeprefix(_CACHED).partition("--")[2]
    return folder.name or path.name


def is_pulled_name(text: str) -> bool:
    """Whether a text that could be a prompt, too, means a model: it was pulled, or has :QUANT."""
    name = typed_hub_name(text)
    if name is None:
        return False
    if name.quantization:
        return True
    from localmoe.weights.hub_cache import find_pulled

    try:
        find_pulled(name)
    except ModelNotFoundError:
        return False
    return True


ModelFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="[MODEL]",
        show_default=False,
        parser=model_path,
        help="A GGUF file (any shard), the folder of a safetensors checkpoint, or "
        "OWNER/REPO[:QUANT] that was pulled. Default: the demonstration model.",
    ),
]
