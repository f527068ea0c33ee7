"""DeepSeek-V3 and what has its form: latent attention, many small experts."""

from __future__ import annotations

import dataclasses

from zoo import layers
from zoo.draft import Draft
from zoo.model import ZooModel
from zoo.shape import Shape


def deepseek2(model: Draft) -> None:
    """DeepSeek-V3's form: latent attention, expert groups, selection bias, YaRN, shared expert."""
    shape = model.shape
    q_rank, kv_rank, rope = 48, 32, 32
    layers.common(model)
    layers.expert_keys(
        model,
        leading_dense_block_count=shape.dense_layers,
        expert_shared_count=shape.shared_experts,
        expert_gating_func=layers.SIGMOID,
        expert_weights_norm=True,
        expert_weights_scale=2.5,
        expert_group_count=4,
        expert_group_used_count=2,
    )
    model.key(
        attention__head_count_kv=1,
        attention__q_lora_rank=q_rank,
        attention__kv_lora_rank=kv_rank,
        attention__key_length=kv_rank + rope,
        attention__value_length=kv_rank,
        attention__key_length_mla=shape.head_size + rope,
        attention__value_length_mla=shape.head_size,
        rope__dimension_count=rope,
        rope__freq_base=10000.0,
        rope__scaling__type="yarn",
        rope__scaling__factor=4.0,
        rope__scaling__original_context_length=shape.context // 4,
        rope__scaling__yarn_log_multiplier=0.1,
    )
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        model.norm(prefix + "attn_norm", shape.embedding)
        layers.latent_attention(model, prefix, q_rank=q_rank, kv_rank=kv_rank, rope=rope)
        model.norm(prefix + "ffn_norm", shape.embedding)
        layers.dense_or_routed(model, i)


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
}
