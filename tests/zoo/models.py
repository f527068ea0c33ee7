"""Named models: each architecture with the sizes, types and layouts that tests want to meet."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from zoo.architectures import ARCHITECTURES
from zoo.draft import Draft
from zoo.shape import Shape

_DEEPSEEK = Shape(dense_layers=1, shared_experts=1)
_K_QUANTS = (("Q4_K", "Q4_K", "Q6_K"), ("Q4_K", "Q5_K", "Q4_K"), ("Q6_K", "Q4_K", "Q8_0"))

MODELS: dict[str, tuple[str, Shape]] = {
    # Parts of 8192 bytes, at aligned offsets in the file.
    "qwen3moe": ("qwen3moe", Shape(alignment=4096)),
    # Parts of 8704 bytes: a multiple of 512 only.
    "qwen3moe-q8": (
        "qwen3moe",
        Shape(embedding=128, expert_feed_forward=64, expert_types=(("Q8_0",) * 3,)),
    ),
    # Types that differ per layer and per projection, from 18432 to 34816 bytes.
    "qwen3moe-mixed": (
        "qwen3moe",
        Shape(
            embedding=256,
            expert_feed_forward=256,
            experts=6,
            expert_types=_K_QUANTS,
            resident_type="Q8_0",
        ),
    ),
    # Parts of 2176 and 1152 bytes: no multiple of 512; one scale of 4 bytes per expert and matrix.
    "qwen3moe-scaled": (
        "qwen3moe",
        Shape(expert_types=(("Q8_0", "Q4_0", "Q8_0"),), expert_scales=True, shards=3),
    ),
    "afmoe": ("afmoe", Shape(layers=5, dense_layers=1, shared_experts=1)),
    "deepseek2": ("deepseek2", _DEEPSEEK),
    "deepseek2-fused": ("deepseek2", dataclasses.replace(_DEEPSEEK, fused_gate_up=True)),
    # Parts of 1088 bytes, biases of 128 and 256.
    "gpt-oss": ("gpt-oss", Shape(layers=4, expert_types=(("MXFP4",) * 3,))),
}


def write(directory: Path, name: str, **changes: Any) -> Path:
    """Write the named model, with fields of its Shape changed, and return its first file."""
    architecture, shape = MODELS[name]
    model = Draft(architecture, dataclasses.replace(shape, **changes))
    ARCHITECTURES[architecture](model)
    return model.write(directory, name)
