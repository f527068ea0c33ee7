"""Qwen: grouped-query attention with q/k norms; the hybrids."""

from __future__ import annotations

from zoo import layers
from zoo.draft import Draft
from zoo.model import ZooModel
from zoo.shape import Shape


def qwen3moe(model: Draft) -> None:
    """Grouped-query attention with q/k norms, experts in every layer, softmax router."""
    layers.common(model)
    layers.grouped_query_keys(model)
    layers.expert_keys(model)
    layers.routed_layers(model, qk_norm=True)


def qwen2moe(model: Draft) -> None:
    """Biased queries, keys and values; a shared expert behind a gate of its own."""
    shape = model.shape
    layers.common(model)
    layers.grouped_query_keys(model)
    layers.expert_keys(model, expert_shared_feed_forward_length=shape.shared_feed_forward)
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        layers.pre_norm_attention(model, prefix)
        layers.projection_biases(model, prefix)
        layers.router(model, prefix)
        layers.shared_expert_gate(model, prefix)
        layers.shared_expert(model, prefix)
        layers.experts(model, i)


def qwen3vlmoe(model: Draft) -> None:
    """The text side: rotation in sections, and room for images added in the first layers."""
    qwen3moe(model)
    model.key(rope__dimension_sections=[6, 5, 5, 0], n_deepstack_layers=2)


MODELS = {
    # Parts of 8192 bytes, at aligned offsets in the file.
    "qwen3moe": ZooModel(
        "qwen3moe",
        qwen3moe,
        Shape(alignment=4096),
        stands_for="Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder",
        covers="q/k norms, softmax router, experts in every layer",
    ),
    "qwen2moe": ZooModel(
        "qwen2moe",
        qwen2moe,
        Shape(head_size=16, shared_experts=2, experts_used=4),
        stands_for="Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B",
        covers="gated shared expert, weights that are not normalised, biases of q, k and v",
    ),
    "qwen3vlmoe": ZooModel(
        "qwen3vlmoe",
        qwen3vlmoe,
        Shape(),
        stands_for="the text side of Qwen3-VL-30B-A3B and 235B-A22B",
        covers="rotation in sections, padded embedding added in the first layers",
    ),
}
