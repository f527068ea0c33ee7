"""Families of one: each has an architecture or two."""

from __future__ import annotations

from zoo import layers
from zoo.draft import Draft
from zoo.model import ZooModel
from zoo.shape import Shape


def smallthinker(model: Draft) -> None:
    """A router that sees what attention sees, experts with ReLU, layers without positions."""
    shape = model.shape
    layers.common(model)
    layers.grouped_query_keys(model)
    layers.expert_keys(model, expert_gating_func=layers.SIGMOID)
    # llama.cpp takes any window for one of 4096 tokens: the two caches are there, but no edge.
    model.key(attention__sliding_window=4096)
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        layers.pre_norm_attention(model, prefix)
        layers.router(model, prefix)
        layers.experts(model, i)


def grovemoe(model: Draft) -> None:
    """Experts in groups of two, each group with a small resident expert, routed a second time."""
    shape = model.shape
    per_group, width = 2, 16
    layers.common(model)
    layers.grouped_query_keys(model)
    layers.expert_keys(
        model,
        expert_chunk_feed_forward_length=width,
        expert_group_scale=0.5,
        experts_per_group=per_group,
    )
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        layers.pre_norm_attention(model, prefix, qk_norm=True)
        layers.router(model, prefix)
        layers.experts(model, i)
        groups = shape.experts // per_group
        model.matrix(prefix + "ffn_gate_chexps", groups, width, shape.embedding)
        model.matrix(prefix + "ffn_up_chexps", groups, width, shape.embedding)
        model.matrix(prefix + "ffn_down_chexps", groups, shape.embedding, width)


MODELS = {
    "smallthinker": ZooModel(
        "smallthinker",
        smallthinker,
        Shape(layers=5),
        stands_for="SmallThinker 4B-A0.6B, 21B-A3B",
        covers="router before attention, ReLU, layers without positions, sigmoid",
    ),
    "grovemoe": ZooModel(
        "grovemoe",
        grovemoe,
        Shape(),
        stands_for="GroveMoE",
        covers="two routings per layer, the second to small experts that are resident",
    ),
}
