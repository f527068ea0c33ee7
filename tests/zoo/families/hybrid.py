"""Models whose layers are partly recurrent: a state in place of a KV cache."""

from __future__ import annotations

from zoo import layers
from zoo.draft import Draft
from zoo.model import ZooModel
from zoo.shape import Shape

_KERNEL = 4
"""Tokens under a convolution, the present one included."""
_DELTA_HEAD = 16
"""Width of a head of Kimi's delta net."""
_LATENT, _ROTATED = 32, 16
"""Widths of latent attention: what is cached for all heads, and the rotated part of keys."""


def _attention_only_in(model: Draft, has_attention: list[bool], kv_heads: int) -> None:
    """Give the other layers no heads for keys and values: that makes them recurrent."""
    model.key(attention__head_count_kv=[kv_heads * here for here in has_attention])


def lfm2moe(model: Draft) -> None:
    """Short convolutions with attention in between; the embedding is the output matrix, too."""
    shape = model.shape
    layers.common(model, embedding_std=0.5, tied=True, last_norm="token_embd_norm")
    layers.grouped_query_keys(model)
    has_attention = [i % 3 == 1 for i in range(shape.layers)]
    _attention_only_in(model, has_attention, shape.kv_heads)
    layers.expert_keys(
        model, leading_dense_block_count=shape.dense_layers, expert_gating_func=layers.SIGMOID
    )
    model.key(shortconv__l_cache=_KERNEL)
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        model.norm(prefix + "attn_norm", shape.embedding)
        if has_attention[i]:
            layers.grouped_query(model, prefix, qk_norm=True)
        else:
            model.matrix(prefix + "shortconv.in_proj", 3 * shape.embedding, shape.embedding)
            model.noise(prefix + "shortconv.conv.weight", shape.embedding, _KERNEL, std=0.7)
            model.matrix(prefix + "shortconv.out_proj", shape.embedding, shape.embedding)
        model.norm(prefix + "ffn_norm", shape.embedding)
        if i < shape.dense_layers:
            layers.gated(model, prefix, "", shape.feed_forward)
        else:
            layers.router(model, prefix)
            layers.selection_bias(model, prefix)
            layers.experts(model, i)


def kimi_linear(model: Draft) -> None:
    """Delta nets that forget channel by channel; latent attention without positions in between."""
    shape = model.shape
    layers.common(model)
    layers.latent_keys(model, q_rank=0, kv_rank=_LATENT, rope=_ROTATED)
    has_attention = [i % 2 == 1 for i in range(shape.layers)]
    _attention_only_in(model, has_attention, 1)
    layers.shared_expert_keys(model, gating=layers.SIGMOID, scale=2.5)
    model.key(ssm__conv_kernel=_KERNEL, kda__head_dim=_DELTA_HEAD)
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        model.norm(prefix + "attn_norm", shape.embedding)
        if has_attention[i]:
            layers.latent_attention(model, prefix, q_rank=0, kv_rank=_LATENT, rope=_ROTATED)
        else:
            kimi_delta_net(model, prefix)
        model.norm(prefix + "ffn_norm", shape.embedding)
        layers.dense_or_routed(model, i)


def kimi_delta_net(model: Draft, prefix: str) -> None:
    """Add Kimi's delta net: convolutions apart for q, k and v, low-rank gates."""
    heads, embedding = model.shape.heads, model.shape.embedding
    width = heads * _DELTA_HEAD
    for name in ("q", "k", "v"):
        model.matrix(f"{prefix}attn_{name}", width, embedding)
        model.noise(f"{prefix}ssm_conv1d_{name}.weight", 1, width, 1, _KERNEL, std=0.5)
    for name in ("ssm_f", "ssm_g"):  # how much is forgotten; how much comes out
        model.matrix(f"{prefix}{name}_a", _DELTA_HEAD, embedding)
        model.matrix(f"{prefix}{name}_b", width, _DELTA_HEAD)
    model.matrix(prefix + "ssm_beta", heads, embedding)
    # Minus one, roughly: half of the state is gone after one token.
    model.noise(prefix + "ssm_a", 1, 1, heads, 1, std=0.1, mean=-1.0)
    model.noise(prefix + "ssm_dt.bias", width, std=0.5)
    model.norm(prefix + "ssm_norm", _DELTA_HEAD)
    model.matrix(prefix + "attn_output", embedding, width)


MODELS = {
    "lfm2moe": ZooModel(
        "lfm2moe",
        lfm2moe,
        Shape(layers=5, head_size=16, dense_layers=1),
        stands_for="LFM2-8B-A1B, LFM2-24B-A2B",
        covers="short convolutions, selection bias, a leading dense layer, "
        "embedding and output in one matrix",
    ),
    "kimi-linear": ZooModel(
        "kimi-linear",
        kimi_linear,
        Shape(layers=5, dense_layers=1, shared_experts=1),
        stands_for="Kimi-Linear-48B-A3B",
        covers="delta nets, latent attention without positions, selection bias, shared expert, "
        "a leading dense layer",
    ),
}
