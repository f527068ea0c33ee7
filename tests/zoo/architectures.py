"""Every architecture as one function that declares its keys and tensors.

To add one: write its function below with the pieces of `layers`, put it into ARCHITECTURES, and
name a model of it in `models.MODELS`. llama.cpp's `src/models/<name>.cpp` says what it requires.
"""

from __future__ import annotations

from collections.abc import Callable

from zoo import layers
from zoo.draft import Draft

_SIGMOID = 2
"""GGUF's number for a router that scores by sigmoid."""


def qwen3moe(model: Draft) -> None:
    """Grouped-query attention with q/k norms, experts in every layer, softmax router."""
    shape = model.shape
    layers.common(model)
    layers.grouped_query_keys(model)
    layers.expert_keys(model)
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        model.norm(prefix + "attn_norm", shape.embedding)
        layers.grouped_query(model, prefix, qk_norm=True)
        model.norm(prefix + "ffn_norm", shape.embedding)
        layers.router(model, prefix)
        layers.experts(model, i)


def afmoe(model: Draft) -> None:
    """Sandwich norms, gated attention, sliding windows, a shared expert, a selection bias."""
    shape = model.shape
    # The graph multiplies the embedding by the root of its width.
    layers.common(model, embedding_std=shape.embedding**-0.5)
    layers.grouped_query_keys(model)
    layers.expert_keys(
        model,
        leading_dense_block_count=shape.dense_layers,
        expert_shared_count=shape.shared_experts,
        expert_gating_func=_SIGMOID,
        expert_weights_norm=True,
        expert_weights_scale=2.5,
    )
    model.key(attention__sliding_window=shape.window)
    width = shape.heads * shape.head_size
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        model.norm(prefix + "attn_norm", shape.embedding)
        layers.grouped_query(model, prefix, qk_norm=True)
        model.matrix(prefix + "attn_gate", width, shape.embedding)
        model.norm(prefix + "post_attention_norm", shape.embedding, mean=0.5)
        model.norm(prefix + "ffn_norm", shape.embedding)
        model.norm(prefix + "post_ffw_norm", shape.embedding, mean=0.5)
        _dense_or_routed(model, i)


def deepseek2(model: Draft) -> None:
    """DeepSeek-V3's form: latent attention, expert groups, selection bias, YaRN, shared expert."""
    shape = model.shape
    q_rank, kv_rank, rope = 48, 32, 32
    layers.common(model)
    layers.expert_keys(
        model,
        leading_dense_block_count=shape.dense_layers,
        expert_shared_count=shape.shared_experts,
        expert_gating_func=_SIGMOID,
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
        _dense_or_routed(model, i)


def gpt_oss(model: Draft) -> None:
    """Biases everywhere, the experts included; attention sinks, windows in every other layer."""
    shape = model.shape
    layers.common(model)
    layers.grouped_query_keys(model)
    layers.expert_keys(model)
    model.key(attention__sliding_window=shape.window)
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        model.norm(prefix + "attn_norm", shape.embedding)
        layers.grouped_query(model, prefix, bias=True)
        model.noise(prefix + "attn_sinks.weight", shape.heads, std=1.0)
        model.norm(prefix + "post_attention_norm", shape.embedding)
        layers.router(model, prefix, bias=True)
        layers.experts(model, i, bias=True)


def _dense_or_routed(model: Draft, layer: int) -> None:
    """Add a dense feed-forward, or routed experts with a selection bias and a shared expert."""
    shape, prefix = model.shape, f"blk.{layer}."
    if layer < shape.dense_layers:
        layers.gated(model, prefix, "", shape.feed_forward)
        return
    layers.router(model, prefix)
    # Around a negative mean: a mask of 0.0 instead of minus infinity would be caught.
    model.noise(prefix + "exp_probs_b.bias", shape.experts, std=0.2, mean=-0.5)
    layers.gated(model, prefix, "_shexp", shape.expert_feed_forward * shape.shared_experts)
    layers.experts(model, layer)


ARCHITECTURES: dict[str, Callable[[Draft], None]] = {
    "qwen3moe": qwen3moe,
    "afmoe": afmoe,
    "deepseek2": deepseek2,
    "gpt-oss": gpt_oss,
}
