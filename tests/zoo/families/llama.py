"""Llama 4, and what has the form of Llama 2: Mixtral, OLMoE, Phi, Mellum, Mistral 3."""

from __future__ import annotations

from zoo import layers
from zoo.draft import Draft
from zoo.model import ZooModel
from zoo.shape import Shape
from zoo.tokenizer import vocabulary


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
    """Experts in every layer; a factor for each frequency of the rotation."""
    llama4(model, 1)
    model.noise("rope_freqs.weight", model.shape.head_size // 2, std=0.2, mean=1.5)


def llama(model: Draft) -> None:
    """Experts in every layer, a softmax router, weights that add up to one."""
    layers.common(model)
    layers.grouped_query_keys(model)
    layers.expert_keys(model)
    layers.routed_layers(model)


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


def mistral3(model: Draft) -> None:
    """YaRN, and queries that grow with the position: here from every 32nd token on."""
    llama(model)
    layers.yarn_keys(model, log_multiplier=0.1)
    model.key(
        attention__temperature_scale=0.3,
        rope__scaling__original_context_length=32,
    )


def phimoe(model: Draft) -> None:
    """Norms and projections with biases; factors of the rotation for short and long contexts."""
    shape = model.shape
    layers.common(model)
    layers.grouped_query_keys(model)
    layers.expert_keys(model)
    model.key(rope__scaling__original_context_length=64, rope__scaling__attn_factor=1.2)
    for name in ("short", "long"):
        model.noise(f"rope_factors_{name}.weight", shape.head_size // 2, std=0.2, mean=1.5)
    model.noise("output_norm.bias", shape.embedding, std=0.1)
    model.noise("output.bias", len(vocabulary()), std=0.1)
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        layers.pre_norm_attention(model, prefix, bias=True)
        for name in ("attn_norm", "ffn_norm"):
            model.noise(f"{prefix}{name}.bias", shape.embedding, std=0.1)
        layers.router(model, prefix)
        layers.experts(model, i)


def mellum(model: Draft) -> None:
    """Windows, YaRN in the layers that have none, norms of queries and keys."""
    shape = model.shape
    layers.common(model)
    layers.grouped_query_keys(model)
    layers.expert_keys(model)
    layers.yarn_keys(model, log_multiplier=0.1)
    model.key(
        attention__sliding_window=shape.window,
        attention__sliding_window_pattern=[i % 2 == 0 for i in range(shape.layers)],
    )
    layers.routed_layers(model, qk_norm=True)


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
        covers="experts in every layer, q/k norms without weights, factors of the rotation",
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
    "mistral3": ZooModel(
        "mistral3",
        mistral3,
        Shape(experts=8, feed_forward=32),
        stands_for="what llama.cpp would make of a Ministral 3 with experts",
        covers="YaRN, queries scaled by position",
    ),
    "phimoe": ZooModel(
        "phimoe",
        phimoe,
        Shape(head_size=16, feed_forward=32),
        stands_for="Phi-3.5-MoE, Phi-mini-MoE",
        covers="biases of norms and output, LongRoPE",
    ),
    "mellum": ZooModel(
        "mellum",
        mellum,
        Shape(layers=4, experts_used=4, expert_types=(("Q8_0", "Q8_0", "F16"),)),
        stands_for="Mellum 2",
        covers="windows given per layer, YaRN in the other layers only",
    ),
}
