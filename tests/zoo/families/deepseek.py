"""DeepSeek-V3 and what has its form: latent attention, many small experts."""

from __future__ import annotations

import dataclasses

from zoo import layers
from zoo.draft import Draft
from zoo.model import ZooModel
from zoo.shape import Shape

_Q_RANK, _KV_RANK, _ROPE = 48, 32, 32


def deepseek2(model: Draft) -> None:
    """DeepSeek-V3's form: latent attention, expert groups, selection bias, YaRN, shared expert."""
    _latent_keys(model, scale=2.5)
    model.key(expert_group_count=4, expert_group_used_count=2)
    layers.yarn_keys(model, log_multiplier=0.1)
    _latent_layers(model)


def kimi_k2(model: Draft) -> None:
    """One group of very many experts."""
    _latent_keys(model, scale=2.827)
    model.key(expert_group_count=1, expert_group_used_count=1, rope__freq_base=50000.0)
    layers.yarn_keys(model, log_multiplier=0.1)
    _latent_layers(model)


def mistral_large_3(model: Draft) -> None:
    """A softmax over all experts, no selection bias; queries grow with their position."""
    _latent_keys(model, gating=layers.SOFTMAX)
    # The first step of the temperature comes after eight tokens: a prefill chunk has several.
    model.key(attention__temperature_scale=0.1, attention__temperature_length=8)
    layers.yarn_keys(model, log_multiplier=0.1)
    _latent_layers(model, biased=False)


def glm_4_7_flash(model: Draft) -> None:
    """Values wider than keys, no YaRN, a layer that predicts one token more."""
    n_layers, value_size = model.shape.layers + 1, 2 * model.shape.head_size
    _latent_keys(model, value_size=value_size, scale=1.8)
    model.key(block_count=n_layers, nextn_predict_layers=1)
    _latent_layers(model, n_layers, value_size=value_size)
    layers.next_token_head(model, f"blk.{n_layers - 1}.")


def deepseek2_lite(model: Draft) -> None:
    """DeepSeek-V2-Lite as older files have it: whole queries, keys and values not split."""
    shape = model.shape
    whole = shape.head_size + _ROPE
    layers.common(model)
    layers.shared_expert_keys(model, gating=layers.SOFTMAX, normalised=False)
    layers.yarn_keys(model, log_multiplier=0.07)
    model.key(
        attention__head_count_kv=shape.heads,
        attention__kv_lora_rank=_KV_RANK,
        attention__key_length=whole,
        attention__value_length=shape.head_size,
        rope__dimension_count=_ROPE,
    )
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        model.norm(prefix + "attn_norm", shape.embedding)
        model.matrix(prefix + "attn_q", shape.heads * whole, shape.embedding)
        model.matrix(prefix + "attn_kv_a_mqa", _KV_RANK + _ROPE, shape.embedding)
        model.norm(prefix + "attn_kv_a_norm", _KV_RANK)
        model.matrix(prefix + "attn_kv_b", shape.heads * 2 * shape.head_size, _KV_RANK)
        width = shape.heads * shape.head_size
        model.matrix(prefix + "attn_output", shape.embedding, width, gain=0.7)
        model.norm(prefix + "ffn_norm", shape.embedding)
        layers.dense_or_routed(model, i, biased=False)


def deepseek(model: Draft) -> None:
    """The first DeepSeek MoE: plain attention, weights of a softmax as they are."""
    layers.common(model)
    layers.grouped_query_keys(model)
    layers.shared_expert_keys(model, gating=layers.SOFTMAX, normalised=False)
    for i in range(model.shape.layers):
        layers.pre_norm_attention(model, f"blk.{i}.")
        layers.dense_or_routed(model, i, biased=False)


def dots1(model: Draft) -> None:
    """DeepSeek-V3's experts behind plain attention with q/k norms."""
    layers.common(model)
    layers.grouped_query_keys(model)
    layers.shared_expert_keys(model, gating=layers.SIGMOID, scale=2.5)
    for i in range(model.shape.layers):
        layers.pre_norm_attention(model, f"blk.{i}.", qk_norm=True)
        layers.dense_or_routed(model, i)


def _latent_keys(
    model: Draft, *, value_size: int = 0, gating: int = layers.SIGMOID, scale: float = 1.0
) -> None:
    layers.common(model)
    layers.latent_keys(model, q_rank=_Q_RANK, kv_rank=_KV_RANK, rope=_ROPE, value_size=value_size)
    layers.shared_expert_keys(model, gating=gating, scale=scale)


def _latent_layers(
    model: Draft, n_layers: int = 0, *, value_size: int = 0, biased: bool = True
) -> None:
    """Add this many layers; without a number those of the shape."""
    for i in range(n_layers or model.shape.layers):
        prefix = f"blk.{i}."
        model.norm(prefix + "attn_norm", model.shape.embedding)
        layers.latent_attention(
            model, prefix, q_rank=_Q_RANK, kv_rank=_KV_RANK, rope=_ROPE, value_size=value_size
        )
        model.norm(prefix + "ffn_norm", model.shape.embedding)
        layers.dense_or_routed(model, i, biased=biased)


_SHAPE = Shape(dense_layers=1, shared_experts=1)

MODELS = {
    "deepseek2": ZooModel(
        "deepseek2",
        deepseek2,
        _SHAPE,
        stands_for="DeepSeek-V3, R1, V3.1",
        covers="latent attention, expert groups, selection bias, YaRN, shared expert",
    ),
    "deepseek2-fused": ZooModel(
        "deepseek2",
        deepseek2,
        dataclasses.replace(_SHAPE, fused_gate_up=True),
        stands_for="the same, converted with fused gate and up",
        covers="gate and up in one matrix",
    ),
    "deepseek2-kimi": ZooModel(
        "deepseek2",
        kimi_k2,
        dataclasses.replace(
            _SHAPE, experts=48, experts_used=8, expert_types=(("Q4_0", "Q4_0", "Q4_0"),)
        ),
        stands_for="Kimi K2, K2 Thinking, K2.5",
        covers="many experts in one group, selection bias, parts of 1152 bytes",
    ),
    "deepseek2-mistral": ZooModel(
        "deepseek2",
        mistral_large_3,
        dataclasses.replace(_SHAPE, experts_used=4),
        stands_for="Mistral Large 3",
        covers="softmax router without a selection bias, queries scaled by their position",
    ),
    "deepseek2-glm": ZooModel(
        "deepseek2",
        glm_4_7_flash,
        dataclasses.replace(_SHAPE, experts_used=4, expert_types=(("Q8_0",) * 3,)),
        stands_for="GLM-4.7-Flash",
        covers="values wider than keys, no YaRN, an unused layer that predicts further tokens",
    ),
    "deepseek2-lite": ZooModel(
        "deepseek2",
        deepseek2_lite,
        # llama.cpp knows whole queries by this number of layers; few with experts are enough.
        Shape(
            layers=27,
            embedding=32,
            heads=2,
            experts=8,
            dense_layers=24,
            shared_experts=2,
            expert_types=(("Q4_0", "Q4_0", "Q8_0"),),
        ),
        stands_for="DeepSeek-V2-Lite, Coder-V2-Lite, in older files",
        covers="queries from one matrix, keys and values not split, a softmax's weights not "
        "normalised, two shared experts, parts of 576 and 1088 bytes",
    ),
    "mistral4": ZooModel(
        "mistral4",
        mistral_large_3,
        dataclasses.replace(
            _SHAPE,
            experts_used=4,
            dense_layers=0,
            fused_gate_up=True,
            expert_types=(("Q8_0",) * 3,),
        ),
        stands_for="Mistral Small 4",
        covers="fused gate and up, softmax router, queries scaled by their position",
    ),
    "deepseek": ZooModel(
        "deepseek",
        deepseek,
        # The heads together are as wide as the embedding: the loader wants it.
        dataclasses.replace(_SHAPE, head_size=16, shared_experts=2),
        stands_for="DeepSeek-MoE-16B",
        covers="a softmax's weights not normalised, two shared experts, leading dense layer",
    ),
    "deepseek2-ocr": ZooModel(
        "deepseek2-ocr",
        deepseek,
        dataclasses.replace(_SHAPE, head_size=16, kv_heads=4, shared_experts=2),
        stands_for="DeepSeek-OCR, its part that writes",
        covers="deepseek2's graph with plain attention, as many key heads as query heads",
    ),
    "dots1": ZooModel(
        "dots1",
        dots1,
        dataclasses.replace(_SHAPE, heads=2, shared_experts=2),
        stands_for="dots.llm1",
        covers="as many key heads as query heads, q/k norms, selection bias, two shared experts",
    ),
}
