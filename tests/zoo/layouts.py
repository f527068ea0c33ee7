"""One architecture in many layouts: the types, sizes and files that checkpoints come in."""

from __future__ import annotations

from zoo.families.qwen import qwen3moe
from zoo.model import ZooModel
from zoo.shape import Shape

_K_QUANTS = (("Q4_K", "Q4_K", "Q6_K"), ("Q4_K", "Q5_K", "Q4_K"), ("Q6_K", "Q4_K", "Q8_0"))


def _layout(shape: Shape, stands_for: str, covers: str) -> ZooModel:
    return ZooModel("qwen3moe", qwen3moe, shape, stands_for, covers)


MODELS = {
    "qwen3moe-q8": _layout(
        Shape(embedding=128, expert_feed_forward=64, expert_types=(("Q8_0",) * 3,)),
        "Q8_0",
        "parts of 8704 bytes: a multiple of 512 only",
    ),
    "qwen3moe-mixed": _layout(
        Shape(
            embedding=256,
            expert_feed_forward=256,
            experts=6,
            expert_types=_K_QUANTS,
            resident_type="Q8_0",
        ),
        "mixtures like Q4_K_M",
        "types that differ per layer and per projection: three size classes",
    ),
    "qwen3moe-scaled": _layout(
        Shape(expert_types=(("Q8_0", "Q4_0", "Q8_0"),), expert_scales=True, shards=3),
        "split files with scales per expert",
        "parts of 2176 and 1152 bytes: no multiple of 512; one scale per expert and matrix",
    ),
}
