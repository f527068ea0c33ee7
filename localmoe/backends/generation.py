"""What a safetensors checkpoint asks for when it generates, whichever engine runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from localmoe.weights.checkpoint_config import read_object

_NAME = "generation_config.json"
_SAMPLING = ("temperature", "top_k", "top_p", "min_p")


def read_generation_config(folder: Path) -> dict[str, Any]:
    """Read generation_config.json; nothing where there is none. Raises ModelFormatError."""
    path = folder / _NAME
    return read_object(str(path)) if path.exists() else {}


def sampling_values(said: Mapping[str, Any]) -> dict[str, float]:
    """Return the sampling values in a configuration by their usual names."""
    return {
        name: float(value)
        for name in _SAMPLING
        if isinstance(value := said.get(name), int | float) and not isinstance(value, bool)
    }


def token_numbers(said: object) -> frozenset[int]:
    """Return the tokens that a configuration names: one, or a list of them."""
    values = said if isinstance(said, list) else [said]
    return frozenset(v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0)
