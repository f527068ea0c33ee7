"""MiniMax."""

from __future__ import annotations

from zoo import layers
from zoo.draft import Draft
from zoo.model import ZooModel
from zoo.shape import Shape


def minimax_m2(model: Draft) -> None:
    """Norms over all heads together, positions in half of a head, a selection bias."""
    shape = model.shape
    layers.common(model)
    layers.grouped_query_keys(model)
    layers.expert_keys(model, expert_gating_func=layers.SIGMOID)
    model.key(rope__dimension_count=shape.head_size // 2)
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        layers.pre_norm_attention(model, prefix)
        layers.wide_qk_norms(model, prefix)
        layers.router(model, prefix)
        layers.selection_bias(model, prefix)
        layers.experts(model, i)


MODELS = {
    "minimax-m2": ZooModel(
        "minimax-m2",
        minimax_m2,
        Shape(feed_forward=32, experts_used=4),
        stands_for="MiniMax-M2, M2.1",
        covers="q/k norms over all heads, half-rotated heads, sigmoid router, selection bias",
    ),
}
