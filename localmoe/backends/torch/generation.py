"""What a checkpoint asks for when it generates: generation_config.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig

from localmoe.backends.generation import read_generation_config, sampling_values, token_numbers


@dataclass(frozen=True)
class Generation:
    """Tokens that end an answer, and sampling values by their usual names."""

    ends: frozenset[int]
    sampling: dict[str, float]


def read_generation(folder: Path, config: PretrainedConfig) -> Generation:
    """Read what the checkpoint says; it need not say anything. Raises ModelFormatError."""
    said = read_generation_config(folder)
    ends = token_numbers(said.get("eos_token_id"))
    for part in (config, config.get_text_config()):
        ends = ends or token_numbers(getattr(part, "eos_token_id", None))
    return Generation(ends, sampling_values(said))
