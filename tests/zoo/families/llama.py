"""Llama 4, and what goes under Llama's name: Mixtral, OLMoE."""

from __future__ import annotations

from zoo import layers
from zoo.draft import Draft
from zoo.model import ZooModel
from zoo.shape import Shape


def llama4(model: Draft, moe_step: int) -> None:
    """Top-1 routing whose weight scales the experts' input, in every `moe_step`-th layer.

    With 128 experts, as in Maverick, the graph leaves out the norms of queries and keys.
    """
    shape = model.shape
    layers.common(model)
    layers.grouped_query_keys(model)
    layers.expert_keys(model, interleave_moe_layer_step=moe_step)
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        layers.pre_norm_attention(model, prefix)
        if (i + 1) % moe_step:
            layers.gated(model, prefix, "", shape.feed_forward)
            continue
        layers.router(model, prefix)
        layers.shared_expert(model, prefix)
        layers.experts(model, i)


def maverick(model: Draft) -> None:
    """Experts in every second layer."""
    llama4(model, 2)


def scout(model: Draft) -> None:
    """Experts in every layer."""
    llama4(model, 1)


def llama(model: Draft) -> None:
    """Experts in every layer, a softmax router, weights that add up to one."""
    layers.common(model)
    layers.grouped_query_keys(model)
    layers.expert_keys(model)
    for i in range(model.shape.layers):
        prefix = f"blk.{i}."
        layers.pre_norm_attention(model, prefix)
        layers.router(model, prefix)
        layers.experts(model, i)


def olmoe(model: Draft) -> None:
    """Norms over all heads of queries and keys together, weights that do not add up to one."""
    layers.common(model)
    layers.grouped_query_keys(model)
    layers.expert_keys(model)
    for i in range(model.shape.layers):
        prefix = f"blk.{i}."
        layers.pre_norm_attention(model, prefix)
        layers.wide_qk_norms(model, prefix)
        layers.router(model, prefix)
        layers.experts(model, i)


MODELS = {
    # Parts of 1152 bytes.
    "llama4-maverick": ZooModel(
        "llama4",
        maverick,
        Shape(
            layers=4,
            experts=128,
            experts_used=1,
            shared_experts=1,
            expert_types=(("Q4_0",) * 3,),
        ),
        stands_for="Llama 4 Maverick",
        covers="experts in every second layer, top-1 of 128, weight on the experts' input, "
        "two attention caches, a layer without positions, shared expert",
    ),
    "llama4-scout": ZooModel(
        "llama4",
        scout,
        Shape(layers=4, experts_used=1, shared_experts=1),
        stands_for="Llama 4 Scout",
        covers="the same with experts in every layer and q/k norms without weights",
    ),
    "mixtral": ZooModel(
        "llama",
        llama,
        Shape(experts=8, feed_forward=32),
        stands_for="Mixtral 8x7B, 8x22B",
        covers="few large experts, normalised weights",
    ),
    "olmoe": ZooModel(
        "olmoe",
        olmoe,
        Shape(kv_heads=4, head_size=16, feed_forward=32, experts_used=4),
        stands_for="OLMoE-1B-7B",
        covers="q/k norms over all heads, weights that are not normalised",
    ),
}
