"""Kimi's hybrid, and what followed it: delta nets, and latent attention in every few layers."""

from __future__ import annotations

import dataclasses

from zoo import layers
from zoo.delta_net import HEAD, KERNEL, delta_net, low_rank
from zoo.draft import Draft
from zoo.model import ZooModel
from zoo.shape import Shape

_QUERY, _LATENT, _ROTATED = 48, 32, 16
"""Widths of latent attention: compressed queries, the latent, and the part that can be rotated."""


def _keys(model: Draft, has_attention: list[bool], *, q_rank: int = 0) -> None:
    """Add what all have in common; layers without heads for keys are recurrent."""
    layers.latent_keys(model, q_rank=q_rank, kv_rank=_LATENT, rope=_ROTATED)
    layers.shared_expert_keys(model, gating=layers.SIGMOID, scale=2.5)
    model.key(
        attention__head_count_kv=[int(here) for here in has_attention],
        ssm__conv_kernel=KERNEL,
        kda__head_dim=HEAD,
    )


def kimi_linear(model: Draft) -> None:
    """Delta nets that forget channel by channel; latent attention without positions."""
    shape = model.shape
    has_attention = [i % 2 == 1 for i in range(shape.layers)]
    layers.common(model)
    _keys(model, has_attention)
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        model.norm(prefix + "attn_norm", shape.embedding)
        if has_attention[i]:
            layers.latent_attention(model, prefix, q_rank=0, kv_rank=_LATENT, rope=_ROTATED)
        else:
            delta_net(model, prefix, (1, 1, shape.heads, 1), forget=0.0)
            low_rank(model, prefix + "ssm_f")
            low_rank(model, prefix + "ssm_g")
        model.norm(prefix + "ffn_norm", shape.embedding)
        layers.dense_or_routed(model, i)


def kimi_k3(model: Draft) -> None:
    """Layers that look back at earlier ones; experts in a latent space; another activation."""
    shape = model.shape
    has_attention = [i % 2 == 1 for i in range(shape.layers)]
    layers.common(model)
    _keys(model, has_attention, q_rank=_QUERY)
    model.key(
        kda__gate_lower_bound=-5.0,
        expert_latent_length=_LATENT,
        attn_res__block_size=2,
        activation__situ_beta=4.0,
        activation__situ_linear_beta=8.0,
    )
    _looks_back(model, "output_res_score")
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        model.norm(prefix + "attn_norm", shape.embedding)
        _looks_back(model, prefix + "attn_res_score")
        if has_attention[i]:
            layers.latent_attention(model, prefix, q_rank=_QUERY, kv_rank=_LATENT, rope=_ROTATED)
            model.matrix(prefix + "attn_gate", shape.heads * shape.head_size, shape.embedding)
        else:
            delta_net(model, prefix, (shape.heads,), forget=-2.0)
            low_rank(model, prefix + "ssm_f")
            model.matrix(prefix + "ssm_g", shape.heads * HEAD, shape.embedding)
        model.norm(prefix + "ffn_norm", shape.embedding)
        _looks_back(model, prefix + "ffn_res_score")
        _dense_or_latent(model, i)


def _looks_back(model: Draft, name: str) -> None:
    """Add the weights by which the outputs of earlier layers are scored."""
    embedding = model.shape.embedding
    model.noise(name + ".weight", embedding, std=embedding**-0.5)


def _dense_or_latent(model: Draft, layer: int) -> None:
    """Add a dense feed-forward, or experts in a latent space and a shared one outside of it."""
    shape, prefix = model.shape, f"blk.{layer}."
    if layer < shape.dense_layers:
        layers.gated(model, prefix, "", shape.feed_forward)
        return
    layers.router(model, prefix)
    layers.selection_bias(model, prefix)
    layers.shared_expert(model, prefix)
    model.matrix(prefix + "ffn_routed_down", _LATENT, shape.embedding)
    layers.experts(model, layer, latent=_LATENT)
    model.norm(prefix + "ffn_routed_norm", _LATENT)
    model.matrix(prefix + "ffn_routed_up", shape.embedding, _LATENT)


def bailingmoe3(model: Draft) -> None:
    """Gates for each head of latent attention; experts whose activations have a limit."""
    shape = model.shape
    n_layers = shape.layers + 1
    has_attention = [i % 2 == 1 or i == shape.layers for i in range(n_layers)]
    layers.common(model)
    _keys(model, has_attention)
    model.key(
        block_count=n_layers,
        nextn_predict_layers=1,
        kda__safe_gate=True,
        kda__gate_lower_bound=-5.0,
        swiglu_clamp_exp=[1.0 * (i % 2) for i in range(n_layers)],
        swiglu_clamp_shexp=[1.0 * (i % 2) for i in range(n_layers)],
    )
    for i in range(n_layers):
        prefix = f"blk.{i}."
        model.norm(prefix + "attn_norm", shape.embedding)
        if has_attention[i]:
            layers.latent_attention(model, prefix, q_rank=0, kv_rank=_LATENT, rope=_ROTATED)
            model.matrix(prefix + "attn_gate", shape.heads, shape.embedding)
        else:
            delta_net(model, prefix, (shape.heads, 1), forget=2.0)
            model.matrix(prefix + "ssm_f_a", shape.heads * HEAD, shape.embedding)
            model.matrix(prefix + "ssm_g_a", shape.heads * HEAD, shape.embedding)
        model.norm(prefix + "ffn_norm", shape.embedding)
        layers.dense_or_routed(model, i)
    layers.next_token_head(model, f"blk.{shape.layers}.", last_norm="layer_output_norm")


_SHAPE = Shape(layers=5, dense_layers=1, shared_experts=1)

MODELS = {
    "kimi-linear": ZooModel(
        "kimi-linear",
        kimi_linear,
        _SHAPE,
        stands_for="Kimi-Linear-48B-A3B",
        covers="delta nets, latent attention without positions, selection bias, shared expert, "
        "a leading dense layer",
    ),
    "kimi-k3": ZooModel(
        "kimi-k3",
        kimi_k3,
        dataclasses.replace(_SHAPE, experts_used=4),
        stands_for="Kimi-K3",
        covers="delta nets, gated latent attention, attention over the outputs of earlier layers, "
        "experts in a latent space, selection bias, shared expert",
    ),
    "bailingmoe3": ZooModel(
        "bailingmoe3",
        bailingmoe3,
        dataclasses.replace(_SHAPE, experts_used=4),
        stands_for="Ling 3.0 tiny, flash",
        covers="delta nets, latent attention with a gate per head, limited activations, "
        "selection bias, shared expert, a layer for drafting that is left unread",
    ),
}
