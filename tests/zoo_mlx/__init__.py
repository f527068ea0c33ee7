"""Tiny MLX checkpoints of the model types that mlx-lm streams experts of, with random weights."""

from zoo_mlx.checkpoint import in_two_files, take_apart, turn_round, write
from zoo_mlx.reference import new_cache, plain_logits, step, stock
from zoo_mlx.types import TINY, FormatName

__all__ = [
    "TINY",
    "FormatName",
    "in_two_files",
    "new_cache",
    "plain_logits",
    "step",
    "stock",
    "take_apart",
    "turn_round",
    "write",
]
