"""What kind of checkpoint a path names, from names alone."""

from __future__ import annotations

from pathlib import Path

_SUFFIX = ".safetensors"


def is_safetensors(path: Path) -> bool:
    """Whether a path is a safetensors file, an index of some, or a folder of them without GGUF."""
    if path.name.endswith((_SUFFIX, f"{_SUFFIX}.index.json")):
        return True
    try:
        names = [each.name for each in path.iterdir()]
    except OSError:  # a file, or nothing: whoever opens it will say so
        return False
    return any(n.endswith(_SUFFIX) for n in names) and not any(n.endswith(".gguf") for n in names)
