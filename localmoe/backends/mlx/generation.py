"""What a checkpoint asks for when it generates: generation_config.json, then config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from localmoe.errors import ModelFormatError

_NAME = "generation_config.json"
_SAMPLING = ("temperature", "top_k", "top_p", "min_p")


def end_tokens(config: Mapping[str, Any]) -> frozenset[int]:
    """Return the tokens that end an answer; mlx-lm has put both files' into its configuration."""
    text = config.get("text_config")
    for said in (config, text if isinstance(text, Mapping) else {}):
        value = said.get("eos_token_id")
        found = frozenset(
            v
            for v in (value if isinstance(value, list) else [value])
            if isinstance(v, int) and not isinstance(v, bool) and v >= 0
        )
        if found:
            return found
    return frozenset()


def sampling_values(folder: Path) -> dict[str, float]:
    """Return the checkpoint's sampling values by their usual names. Raises ModelFormatError."""
    try:
        values = json.loads((folder / _NAME).read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFormatError(f"{folder / _NAME} is not JSON: {error}") from error
    return {
        name: float(value)
        for name in _SAMPLING
        if isinstance(value := values.get(name), int | float) and not isinstance(value, bool)
    }
