"""Qwen's hybrids: gated delta nets, with full attention in every few layers."""

from __future__ import annotations

from zoo import layers
from zoo.draft import Draft
from zoo.model import ZooModel
from zoo.shape import Shape

_KEY_HEADS, _VALUE_HEADS, _STATE = 2, 4, 16
_INTERVAL = 2
"""Every second layer has full attention."""


def _keys(model: Draft) -> None:
    layers.grouped_query_keys(model)
    layers.expert_keys(
        model,
        expert_shared_feed_forward_length=model.shape.expert_feed_forward * 2,
        full_attention_interval=_INTERVAL,
    )
    model.key(
        rope__dimension_count=model.shape.head_size // 2,
        ssm__conv_kernel=4,
        ssm__inner_size=_VALUE_HEADS * _STATE,
        ssm__state_size=_STATE,
        ssm__time_step_rank=_VALUE_HEADS,
        ssm__group_count=_KEY_HEADS,
    )


def _delta_net(model: Draft, prefix: str) -> None:
    """Add a gated delta net, but for what says how fast it forgets and learns."""
    embedding, values = model.shape.embedding, _VALUE_HEADS * _STATE
    mixed = 2 * _KEY_HEADS * _STATE + values
    model.matrix(prefix + "attn_qkv", mixed, embedding)
    model.matrix(prefix + "attn_gate", values, embedding)
    model.noise(prefix + "ssm_conv1d.weight", mixed, 4, std=0.5)
    model.noise(prefix + "ssm_dt.bias", _VALUE_HEADS, std=0.5)
    # Minus one, roughly: half of the state is gone after one token.
    model.noise(prefix + "ssm_a", _VALUE_HEADS, std=0.1, mean=-1.0)
    model.norm(prefix + "ssm_norm", _STATE)
    model.matrix(prefix + "ssm_out", embedding, values)


def _gated_attention(model: Draft, prefix: str) -> None:
    """Add attention whose queries come with a gate for the output."""
    shape = model.shape
    width, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    model.matrix(prefix + "attn_q", 2 * width, shape.embedding)
    model.matrix(prefix + "attn_k", keys, shape.embedding)
    model.matrix(prefix + "attn_v", keys, shape.embedding)
    model.matrix(prefix + "attn_output", shape.embedding, width)
    model.norm(prefix + "attn_q_norm", shape.head_size)
    model.norm(prefix + "attn_k_norm", shape.head_size)


def _feed_forward(model: Draft, layer: int) -> None:
    """Add routed experts, and a shared one whose output each token scales."""
    shape, prefix = model.shape, f"blk.{layer}."
    model.norm(prefix + "post_attention_norm", shape.embedding)
    layers.router(model, prefix)
    layers.experts(model, layer)
    model.noise(prefix + "ffn_gate_inp_shexp.weight", shape.embedding, std=shape.embedding**-0.5)
    layers.gated(model, prefix, "_shexp", shape.expert_feed_forward * 2)


def _is_recurrent(layer: int) -> bool:
    return (layer + 1) % _INTERVAL != 0


def qwen3next(model: Draft) -> None:
    """Delta nets whose two gates share a matrix, gated attention, a gated shared expert."""
    shape = model.shape
    layers.common(model)
    _keys(model)
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        model.norm(prefix + "attn_norm", shape.embedding)
        if _is_recurrent(i):
            _delta_net(model, prefix)
            model.matrix(prefix + "ssm_ba", 2 * _VALUE_HEADS, shape.embedding)
        else:
            _gated_attention(model, prefix)
        _feed_forward(model, i)


def qwen35moe(model: Draft) -> None:
    """The same with separate gates and rotation in sections, and a layer that is never used."""
    shape = model.shape
    layers.common(model)
    _keys(model)
    # Token, height and width of pictures; text uses the first for all. The sum is half of what
    # is rotated.
    model.key(block_count=shape.layers + 1, nextn_predict_layers=1)
    model.key(rope__dimension_sections=[4, 2, 2, 0])
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        model.norm(prefix + "attn_norm", shape.embedding)
        if _is_recurrent(i):
            _delta_net(model, prefix)
            model.matrix(prefix + "ssm_beta", _VALUE_HEADS, shape.embedding)
            model.matrix(prefix + "ssm_alpha", _VALUE_HEADS, shape.embedding)
        else:
            _gated_attention(model, prefix)
        _feed_forward(model, i)
    _next_token_layer(model, shape.layers)


def _next_token_layer(model: Draft, layer: int) -> None:
    """Add the layer that drafts the token after the next: it is in the file, but never computed."""
    prefix = f"blk.{layer}."
    model.norm(prefix + "attn_norm", model.shape.embedding)
    _gated_attention(model, prefix)
    _feed_forward(model, layer)
    layers.next_token_head(model, prefix)


_SHAPE = Shape(layers=4)

MODELS = {
    "qwen3next": ZooModel(
        "qwen3next",
        qwen3next,
        _SHAPE,
        stands_for="Qwen3-Next-80B-A3B",
        covers="delta nets, gated attention, partial rotation, gated shared expert",
    ),
    "qwen35moe": ZooModel(
        "qwen35moe",
        qwen35moe,
        Shape(layers=4, fused_gate_up=True, seed=1),
        stands_for="Qwen3.5-35B-A3B, Qwen3.5-122B-A10B, Qwen3.5-397B-A17B",
        covers="delta nets, rotation in sections, gate and up in one matrix, gated shared expert, "
        "a layer for drafting that is left unread",
    ),
}
