"""Which tokens end an answer of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from localmoe.backends.generation import token_numbers


def end_tokens(config: Mapping[str, Any]) -> frozenset[int]:
    """Return the tokens that end an answer; mlx-lm has put both files' into its configuration."""
    text = config.get("text_config")
    inner = text if isinstance(text, Mapping) else {}
    return token_numbers(config.get("eos_token_id")) or token_numbers(inner.get("eos_token_id"))
