"""What kind of checkpoint a path names, from names and what config.json says of itself."""

from __future__ import annotations

import json
from pathlib import Path

_SUFFIX = ".safetensors"
_MOST_NBYTES = 16 << 20


def is_safetensors(path: Path) -> bool:
    """Whether a path is a safetensors file, an index of some, or a folder of them without GGUF."""
    if path.name.endswith((_SUFFIX, f"{_SUFFIX}.index.json")):
        return True
    try:
        names = [each.name for each in path.iterdir()]
    except OSError:  # a file, or nothing: whoever opens it will say so
        return False
    return any(n.endswith(_SUFFIX) for n in names) and not any(n.endswith(".gguf") for n in names)


def is_mlx(path: Path) -> bool:
    """Whether a safetensors checkpoint was quantized by MLX: nobody else can read that."""
    config = (path if path.is_dir() else path.parent) / "config.json"
    try:
        with config.open("rb") as file:
            values = json.loads(file.read(_MOST_NBYTES))
    except (OSError, ValueError, RecursionError):  # whoever opens it will say so
        return False
    said = values.get("quantization") if isinstance(values, dict) else None
    return isinstance(said, dict) and {"group_size", "bits"} <= said.keys()
