"""What layers keep and need that remember a state instead of the tokens that they have read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from localmoe.weights.checkpoint_config import CheckpointConfig
from localmoe.weights.checkpoint_layout import CheckpointLayout

DECAY = "A_log"
"""Every family calls the decay of such a layer so."""
_FLOAT_NBYTES = 4
_CHUNK_TOKENS = 64
"""Tokens that are read at once where the decay has a number for each channel."""
_KINDS = (
    (10, ("linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim")),
    (3 * _CHUNK_TOKENS, ("linear_num_heads", "linear_head_dim", "linear_head_dim")),
    (3 * _CHUNK_TOKENS, ("num_heads", "head_dim", "head_dim")),
    (16, ("mamba_n_heads", "mamba_d_state", "mamba_d_head")),
    (16, ("mamba_num_heads", "ssm_state_size", "mamba_head_dim")),
)
"""How many rows, of all heads, are there at once for a token of a step; and the names of heads,
rows and columns of the state. The first were fitted to what the torch engine counts."""
_SELECTIVE_AT_ONCE = 3
"""States that are there at once for a token, where each token has its own decay of each number."""


@dataclass(frozen=True)
class RecurrentState:
    """Bytes of one layer."""

    nbytes: int
    token_nbytes: int
    """For each token of a step while it is computed."""


def recurrent_state(layout: CheckpointLayout) -> RecurrentState | None:
    """Return the state of a recurrent layer; None: the model has none, or of an unknown size.

    Raises ModelFormatError.
    """
    decay = next((w.shape for w in layout.resident if w.name.endswith(DECAY)), None)
    if decay is None:
        return None
    if len(decay) == 2:
        nbytes = decay[0] * decay[1] * _FLOAT_NBYTES
        return RecurrentState(nbytes, _SELECTIVE_AT_ONCE * nbytes)
    for at_once, names in _KINDS:
        for config in _configs(layout.config):
            sizes = [config.number(name) for name in names]
            heads, rows, columns = (size or 0 for size in sizes)
            if heads * rows * columns and (names[0] != "num_heads" or config != layout.config):
                row = heads * columns * _FLOAT_NBYTES
                return RecurrentState(row * rows, at_once * row)
    return None


def _configs(config: CheckpointConfig) -> Iterator[CheckpointConfig]:
    """Yield the configuration, and the part of it that some models keep such layers' sizes in."""
    yield config
    part: Mapping[str, Any] | None = config.text.get("linear_attn_config")
    if isinstance(part, Mapping):
        yield CheckpointConfig(config.path, part)
