"""Hunyuan; and Baidu's Ernie, which has no family of its own."""

from __future__ import annotations

from zoo import layers
from zoo.draft import Draft
from zoo.model import ZooModel
from zoo.shape import Shape


def hunyuan_moe(model: Draft) -> None:
    """Norms of queries and keys after their rotation; a shared expert."""
    shape = model.shape
    layers.common(model)
    layers.grouped_query_keys(model)
    layers.expert_keys(model, expert_shared_feed_forward_length=shape.shared_feed_forward)
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        layers.pre_norm_attention(model, prefix, qk_norm=True)
        layers.router(model, prefix)
        layers.shared_expert(model, prefix)
        layers.experts(model, i)


def ernie4_5_moe(model: Draft) -> None:
    """Leading dense layers, a softmax router with a selection bias, a shared expert."""
    shape = model.shape
    layers.common(model)
    layers.grouped_query_keys(model)
    layers.expert_keys(
        model,
        expert_shared_feed_forward_length=shape.shared_feed_forward,
        interleave_moe_layer_step=1,
        leading_dense_block_count=shape.dense_layers,
    )
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        layers.pre_norm_attention(model, prefix)
        layers.dense_or_routed(model, i, biased=False)
        if i >= shape.dense_layers:
            # Scores of a softmax over all experts are small.
            layers.selection_bias(model, prefix, std=0.02)


MODELS = {
    "hunyuan-moe": ZooModel(
        "hunyuan-moe",
        hunyuan_moe,
        Shape(feed_forward=32, shared_experts=1, experts_used=4),
        stands_for="Hunyuan-A13B",
        covers="q/k norms after the rotation, shared expert computed before the routing",
    ),
    "ernie4_5-moe": ZooModel(
        "ernie4_5-moe",
        ernie4_5_moe,
        Shape(dense_layers=1, shared_experts=2, experts_used=4),
        stands_for="ERNIE 4.5 21B-A3B, 300B-A47B",
        covers="softmax router with a selection bias, leading dense layer, shared expert",
    ),
}
