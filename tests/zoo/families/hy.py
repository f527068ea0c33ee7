"""Tencent's Hy3 and Hy4."""

from __future__ import annotations

from zoo import layers
from zoo.draft import Draft
from zoo.indexer import sparse_attention, sparse_keys
from zoo.model import ZooModel
from zoo.shape import Shape

_STREAMS = 4
"""Copies of the residual stream that Hy4 carries beside each other."""


def hy_v3(model: Draft) -> None:
    """Plain attention, a biased sigmoid router, a shared expert, a layer behind the last one."""
    shape = model.shape
    layers.common(model)
    layers.grouped_query_keys(model)
    layers.expert_keys(
        model,
        expert_shared_feed_forward_length=shape.shared_feed_forward,
        expert_gating_func=layers.SIGMOID,
        expert_weights_norm=True,
        expert_weights_scale=2.5,
    )
    model.key(block_count=shape.layers + 1, nextn_predict_layers=1)
    for i in range(shape.layers + 1):
        prefix = f"blk.{i}."
        layers.pre_norm_attention(model, prefix, qk_norm=True)
        layers.dense_or_routed(model, i, biased=False)
        if i >= shape.dense_layers:
            # This one tensor goes without ".bias".
            model.noise(prefix + "exp_probs_b", shape.experts, std=0.2, mean=-0.5)
    layers.next_token_head(model, f"blk.{shape.layers}.")


def hy_v4(model: Draft) -> None:
    """Gated latent attention with sinks to chosen positions, four residual streams."""
    shape = model.shape
    layers.common(model)
    sparse_keys(model)
    layers.shared_expert_keys(model, gating=layers.SIGMOID, scale=2.5)
    chooses = [i % 2 == 0 for i in range(shape.layers)]
    model.key(
        attention__indexer__types=chooses,
        swiglu_clamp_exp=[0.5] * shape.layers,
        hyper_connection__count=_STREAMS,
        hyper_connection__epsilon=1e-6,
        hyper_connection__magnitude=2.0,
    )
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        model.norm(prefix + "attn_norm", shape.embedding)
        sparse_attention(model, prefix, chooses=chooses[i])
        model.matrix(prefix + "attn_gate", shape.heads * shape.head_size, shape.embedding)
        model.noise(prefix + "attn_sinks.weight", shape.heads, std=1.0)
        model.norm(prefix + "ffn_norm", shape.embedding)
        layers.dense_or_routed(model, i)
        for half in ("attn", "ffn"):
            _streams(model, f"{prefix}hc_{half}", 2)
    _streams(model, "output_hc", 1)


def _streams(model: Draft, prefix: str, directions: int) -> None:
    """Add what weighs the streams when they are gathered, and when a result goes back to them."""
    count = directions * _STREAMS
    model.matrix(prefix + "_fn", count, _STREAMS * model.shape.embedding)
    model.noise(prefix + "_base.weight", count, std=0.5)
    model.noise(prefix + "_scale.weight", directions, std=0.1, mean=1.0)


MODELS: dict[str, ZooModel] = {
    "hy_v3": ZooModel(
        "hy_v3",
        hy_v3,
        Shape(dense_layers=1, shared_experts=1),
        stands_for="Hy3",
        covers="selection bias, shared expert, leading dense layer, an unused MoE layer",
    ),
    "hy_v4": ZooModel(
        "hy_v4",
        hy_v4,
        Shape(layers=4, dense_layers=1, shared_experts=1),
        stands_for="Hy4",
        covers="four residual streams, attention to positions that an indexer chooses, sinks, "
        "gated attention, clamped activations, selection bias, shared expert",
    ),
}
