"""Families of one: each has an architecture or two."""

from __future__ import annotations

from zoo import layers
from zoo.draft import Draft
from zoo.model import ZooModel
from zoo.shape import Shape


def smallthinker(model: Draft) -> None:
    """A router that sees what attention sees, experts with ReLU, layers without positions."""
    layers.common(model)
    layers.grouped_query_keys(model)
    layers.expert_keys(model, expert_gating_func=layers.SIGMOID)
    # llama.cpp takes any window for one of 4096 tokens: the two caches are there, but no edge.
    model.key(attention__sliding_window=4096)
    layers.routed_layers(model)


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


def maple(model: Draft) -> None:
    """Windows with positions, layers without either; activations clamped, a softmax router."""
    shape = model.shape
    layers.common(model)
    layers.grouped_query_keys(model)
    layers.expert_keys(model, swiglu_clamp_exp=[0.5] * shape.layers)
    model.key(
        attention__sliding_window=shape.window,
        attention__sliding_window_pattern=[i % 4 != 3 for i in range(shape.layers)],
        rope__dimension_count=shape.head_size // 2,
    )
    layers.routed_layers(model, qk_norm=True)


def exaone_moe(model: Draft) -> None:
    """Windows with positions, every fourth layer without either; a dense layer behind the last."""
    shape = model.shape
    layers.common(model)
    layers.grouped_query_keys(model)
    layers.shared_expert_keys(model, gating=layers.SIGMOID, scale=2.5)
    model.key(
        block_count=shape.layers + 1,
        nextn_predict_layers=1,
        attention__sliding_window=shape.window,
        rope__scaling__type="none",
    )
    for i in range(shape.layers + 1):
        prefix = f"blk.{i}."
        layers.pre_norm_attention(model, prefix, qk_norm=True)
        if i < shape.layers:
            layers.dense_or_routed(model, i)
        else:
            layers.gated(model, prefix, "", shape.feed_forward)
            layers.next_token_head(model, prefix)


def cohere2moe(model: Draft) -> None:
    """Attention and experts side by side behind one norm, which takes off the mean."""
    shape = model.shape
    layers.common(model, tied=True, epsilon="layer_norm_epsilon")
    layers.grouped_query_keys(model)
    layers.shared_expert_keys(model, gating=layers.SIGMOID)
    model.key(
        block_count=shape.layers + 1,
        nextn_predict_layers=1,
        attention__sliding_window=shape.window,
        attention__sliding_window_pattern=[i % 4 != 3 for i in range(shape.layers)] + [False],
        logit_scale=0.5,
        rope__scaling__type="none",
    )
    for i in range(shape.layers + 1):
        prefix = f"blk.{i}."
        model.norm(prefix + "attn_norm", shape.embedding)
        layers.grouped_query(model, prefix)
        layers.dense_or_routed(model, i, biased=False)
    layers.next_token_head(model, f"blk.{shape.layers}.")


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
    "maple": ZooModel(
        "maple",
        maple,
        Shape(layers=5),
        stands_for="Maple",
        covers="windows, layers without positions, clamped activations",
    ),
    "exaone-moe": ZooModel(
        "exaone-moe",
        exaone_moe,
        Shape(layers=5, dense_layers=1, shared_experts=1),
        stands_for="K-EXAONE-236B-A23B",
        covers="windows, a layer without positions, selection bias, shared expert, leading dense "
        "layer, an unused dense layer that predicts further tokens",
    ),
    "cohere2moe": ZooModel(
        "cohere2moe",
        cohere2moe,
        Shape(layers=5, dense_layers=1, shared_experts=2),
        stands_for="Command A with experts",
        covers="attention beside experts, norms with a mean, windows, a layer without positions, "
        "averaged shared experts, output tied to the embedding, an unused MoE layer",
    ),
}
