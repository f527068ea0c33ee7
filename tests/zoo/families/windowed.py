"""Models whose layers with a window have other sizes than those without: heads, rotation, sinks."""

from __future__ import annotations

from zoo import layers
from zoo.draft import Draft
from zoo.model import ZooModel
from zoo.shape import Shape

_WIDE, _NARROW = 8, 4
"""Heads of layers with a window, and of layers without."""


def laguna(model: Draft) -> None:
    """More heads in windows; YaRN and half a rotation without; a gate per head."""
    shape = model.shape
    has_window = [i % 4 != 0 for i in range(shape.layers)]
    heads = [_WIDE if windowed else _NARROW for windowed in has_window]
    layers.common(model)
    layers.grouped_query_keys(model)
    layers.yarn_keys(model, log_multiplier=0.1)
    layers.shared_expert_keys(model, gating=layers.SIGMOID, scale=2.5)
    model.key(
        attention__head_count=heads,
        attention__sliding_window=shape.window,
        expert_shared_feed_forward_length=shape.shared_feed_forward,
        rope__dimension_count=shape.head_size // 2,
        rope__dimension_count_swa=shape.head_size,
        rope__freq_base=500000.0,
        rope__freq_base_swa=10000.0,
    )
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        _attention(model, prefix, heads[i], shape.kv_heads)
        model.matrix(prefix + "attn_gate", heads[i], shape.embedding)
        layers.dense_or_routed(model, i)


def step35(model: Draft) -> None:
    """More heads in windows, half a rotation without; a gate per head, clamped activations."""
    shape = model.shape
    has_window = [i % 4 != 0 for i in range(shape.layers)] + [True]
    heads = [_WIDE if windowed else _NARROW for windowed in has_window]
    layers.common(model)
    layers.grouped_query_keys(model)
    layers.shared_expert_keys(model, gating=layers.SIGMOID, scale=2.5)
    model.key(
        block_count=shape.layers + 1,
        nextn_predict_layers=1,
        attention__head_count=heads,
        attention__head_count_kv=[2 if windowed else 1 for windowed in has_window],
        attention__sliding_window=shape.window,
        attention__sliding_window_pattern=has_window,
        expert_shared_feed_forward_length=shape.shared_feed_forward,
        rope__freq_base=500000.0,
        rope__freq_base_swa=10000.0,
        swiglu_clamp_exp=[0.5 if i > 2 else 0.0 for i in range(shape.layers + 1)],
        swiglu_clamp_shexp=[0.5 if i > 3 else 0.0 for i in range(shape.layers + 1)],
    )
    model.noise("rope_freqs.weight", shape.head_size // 2, std=0.1, mean=1.5)
    for i, windowed in enumerate(has_window):
        prefix = f"blk.{i}."
        _attention(model, prefix, heads[i], 2 if windowed else 1)
        model.matrix(prefix + "attn_gate", heads[i], shape.embedding)
        layers.dense_or_routed(model, i)
    layers.next_token_head(model, f"blk.{shape.layers}.")


def mimo2(model: Draft) -> None:
    """Keys wider than values, sinks and more of both in windows, q, k and v in one matrix."""
    shape = model.shape
    value_size = shape.head_size // 2
    has_window = [i % 3 != 0 for i in range(shape.layers)] + [True]
    kv_heads = [2 if windowed else 1 for windowed in has_window]
    layers.common(model)
    layers.grouped_query_keys(model)
    layers.expert_keys(model, expert_weights_scale=1.5)
    model.key(
        block_count=shape.layers + 1,
        nextn_predict_layers=1,
        attention__head_count_kv=kv_heads,
        attention__value_length=value_size,
        attention__value_scale=0.7,
        attention__sliding_window=shape.window,
        attention__sliding_window_pattern=[int(windowed) for windowed in has_window],
        rope__dimension_count=shape.head_size // 2,
        rope__freq_base=500000.0,
        rope__freq_base_swa=10000.0,
    )
    for i, windowed in enumerate(has_window):
        prefix = f"blk.{i}."
        width = (shape.heads + kv_heads[i]) * shape.head_size + kv_heads[i] * value_size
        model.norm(prefix + "attn_norm", shape.embedding)
        model.matrix(prefix + "attn_qkv", width, shape.embedding)
        model.matrix(prefix + "attn_output", shape.embedding, shape.heads * value_size, gain=0.7)
        if windowed:
            model.noise(prefix + "attn_sinks.weight", shape.heads, std=1.0)
        model.norm(prefix + "ffn_norm", shape.embedding)
        _dense_or_routed(model, i)
    layers.next_token_head(model, f"blk.{shape.layers}.")


def _dense_or_routed(model: Draft, layer: int) -> None:
    """Add a dense feed-forward at both ends of the layers, and between them experts alone."""
    shape, prefix = model.shape, f"blk.{layer}."
    if not shape.dense_layers <= layer < shape.layers:
        layers.gated(model, prefix, "", shape.feed_forward)
        return
    layers.router(model, prefix)
    layers.selection_bias(model, prefix)
    layers.experts(model, layer)


def _attention(model: Draft, prefix: str, heads: int, kv_heads: int) -> None:
    """Add attention with q/k norms, its heads counted per layer, and the norms around it."""
    shape = model.shape
    query, key = heads * shape.head_size, kv_heads * shape.head_size
    model.norm(prefix + "attn_norm", shape.embedding)
    for name, rows in (("attn_q", query), ("attn_k", key), ("attn_v", key)):
        model.matrix(prefix + name, rows, shape.embedding)
    model.norm(prefix + "attn_q_norm", shape.head_size)
    model.norm(prefix + "attn_k_norm", shape.head_size)
    model.matrix(prefix + "attn_output", shape.embedding, query, gain=0.7)
    model.norm(prefix + "ffn_norm", shape.embedding)


_SHAPE = Shape(layers=5, dense_layers=1, shared_experts=1, head_size=16)

MODELS: dict[str, ZooModel] = {
    "laguna": ZooModel(
        "laguna",
        laguna,
        _SHAPE,
        stands_for="Laguna XS.2, S.2, M.1",
        covers="windows, heads and rotation that differ per layer, YaRN in some layers, gated "
        "attention, selection bias, shared expert, leading dense layer",
    ),
    "step35": ZooModel(
        "step35",
        step35,
        _SHAPE,
        stands_for="Step-3.5-Flash",
        covers="windows, heads and rotation that differ per layer, gated attention, clamped "
        "activations in some layers, shared expert, an unused MoE layer",
    ),
    "mimo2": ZooModel(
        "mimo2",
        mimo2,
        Shape(layers=5, dense_layers=1),
        stands_for="MiMo-V2-Flash, V2.5",
        covers="windows, key/value heads that differ per layer, sinks in windows, keys wider "
        "than values, selection bias, leading dense layer, an unused dense layer",
    ),
}
