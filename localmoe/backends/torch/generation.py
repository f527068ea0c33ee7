"""What a checkpoint asks for when it generates: generation_config.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from localmoe.backends.torch.model_config import read_json

_NAME = "generation_config.json"
_SAMPLING = ("temperature", "top_k", "top_p", "min_p")


@dataclass(frozen=True)
class Generation:
    """Tokens that end an answer, and sampling values by their usual names."""

    ends: frozenset[int]
    sampling: dict[str, float]


def read_generation(folder: Path, config: PretrainedConfig) -> Generation:
    """Read what the checkpoint says; it need not say anything. Raises ModelFormatError."""
    path = folder / _NAME
    values: dict[str, Any] = read_json(path) if path.exists() else {}
    ends = _tokens(values.get("eos_token_id"))
    for part in (config, config.get_text_config()):
        ends = ends or _tokens(getattr(part, "eos_token_id", None))
    sampling = {
        name: float(value)
        for name in _SAMPLING
        if isinstance(value := values.get(name), int | float) and not isinstance(value, bool)
    }
    return Generation(ends, sampling)


def _tokens(value: object) -> frozenset[int]:
    values = value if isinstance(value, list) else [value]
    return frozenset(v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0)
