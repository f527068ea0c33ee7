"""Qwen's hybrids: gated delta nets, with full attention in every few layers."""

from __future__ import annotations

from zoo import layers
from zoo.draft import Draft
from zoo.model import ZooModel
from zoo.shape import Shape

_KEY_HEADS, _VALUE_HEADS, _STATE = 2, 4, 16
_INTERVAL = 2
"""Every second layer has full attention."""


def keys(model: Draft) -> None:
    """Add the keys of attention, experts and delta nets."""
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


def delta_net(model: Draft, prefix: str) -> None:
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


def gated_attention(model: Draft, prefix: str) -> None:
    """Add attention whose queries come with a gate for the output."""
    shape = model.shape
    width, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    model.matrix(prefix + "attn_q", 2 * width, shape.embedding)
    model.matrix(prefix + "attn_k", keys, shape.embedding)
    model.matrix(prefix + "attn_v", keys, shape.embedding)
    model.matrix(prefix + "attn_output", shape.embedding, width)
    model.norm(prefix + "attn_q_norm", shape.head_size)
    model.norm(prefix + "attn_k_norm", shape.head_size)


def feed_forward(model: Draft, layer: int) -> None:
    """Add routed experts, and a shared one whose output each token scales."""
    shape, prefix = model.shape, f"blk.{layer}."
    layers.router(model, prefix)
    layers.experts(model, layer)
    model.noise(prefix + "ffn_gate_inp_shexp.weight", shape.embedding, std=shape.embedding**-0.5)
    layers.gated(model, prefix, "_shexp", shape.expert_feed_forward * 2)


def is_recurrent(layer: int) -> bool:
    """Tell a delta net from attention."""
    return (layer + 1) % _INTERVAL != 0


def token_mixer(model: Draft, layer: int) -> None:
    """Add what lets tokens see each other: attention, or a delta net with its two gates."""
    prefix = f"blk.{layer}."
    if not is_recurrent(layer):
        gated_attention(model, prefix)
        return
    delta_net(model, prefix)
    model.matrix(prefix + "ssm_beta", _VALUE_HEADS, model.shape.embedding)
    model.matrix(prefix + "ssm_alpha", _VALUE_HEADS, model.shape.embedding)


def _norms(model: Draft, prefix: str) -> None:
    model.norm(prefix + "attn_norm", model.shape.embedding)
    model.norm(prefix + "post_attention_norm", model.shape.embedding)


def qwen3next(model: Draft) -> None:
    """Delta nets whose two gates share a matrix, gated attention, a gated shared expert."""
    shape = model.shape
    layers.common(model)
    keys(model)
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        _norms(model, prefix)
        if is_recurrent(i):
            delta_net(model, prefix)
            model.matrix(prefix + "ssm_ba", 2 * _VALUE_HEADS, shape.embedding)
        else:
            gated_attention(model, prefix)
        feed_forward(model, i)


def qwen35moe(model: Draft) -> None:
    """The same with separate gates and rotation in sections, and a layer that is never used."""
    last = model.shape.layers
    layers.common(model)
    keys(model)
    sections(model)
    model.key(block_count=last + 1, nextn_predict_layers=1)
    for i in range(last):
        _norms(model, f"blk.{i}.")
        token_mixer(model, i)
        feed_forward(model, i)
    # It drafts the token after the next, and is never computed here.
    _norms(model, f"blk.{last}.")
    gated_attention(model, f"blk.{last}.")
    feed_forward(model, last)
    layers.next_token_head(model, f"blk.{last}.")


def sections(model: Draft) -> None:
    """Rotate by time, height and width, as pictures need it; for text all three are the same."""
    # Their sum is half of what is rotated.
    model.key(rope__dimension_sections=[4, 2, 2, 0])


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
        Shape(layers=4, fused_gate_up=True),
        stands_for="Qwen3.5-35B-A3B, Qwen3.5-122B-A10B, Qwen3.5-397B-A17B",
        covers="delta nets, rotation in sections, gate and up in one matrix, gated shared expert, "
        "a layer for drafting that is left unread",
    ),
}
