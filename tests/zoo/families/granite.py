"""IBM's Granite."""

from __future__ import annotations

from zoo import layers
from zoo.draft import Draft
from zoo.model import ZooModel
from zoo.shape import Shape


def scales(model: Draft) -> None:
    """Add the numbers by which Granite multiplies embedding, residuals, attention and logits."""
    model.key(
        embedding_scale=12.0,
        residual_scale=0.7,
        attention__scale=0.125,
        logit_scale=0.5,
    )


def granitemoe(model: Draft) -> None:
    """Scales everywhere; a shared expert where the model has one."""
    shape = model.shape
    layers.common(model, embedding_std=1 / 12)
    layers.grouped_query_keys(model)
    layers.expert_keys(model)
    scales(model)
    if shape.shared_experts:
        width = shape.shared_feed_forward
        model.key(expert_shared_feed_forward_length=width)
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        layers.pre_norm_attention(model, prefix)
        layers.router(model, prefix)
        if shape.shared_experts:
            layers.shared_expert(model, prefix)
        layers.experts(model, i)


def granite(model: Draft) -> None:
    """GraniteMoE's form without positions, and with room for images added in one layer."""
    granitemoe(model)
    model.key(
        rope__scaling__finetuned=False,
        deepstack_mapping=[0 if i == 1 else -1 for i in range(model.shape.layers)],
    )


def minicpm(model: Draft) -> None:
    """Granite's graph, with scales of its own where the file names none."""
    layers.common(model, embedding_std=1 / 12)
    layers.grouped_query_keys(model)
    layers.expert_keys(model)
    layers.routed_layers(model)


def granite_swa(model: Draft) -> None:
    """Windows and positions given per layer, attention sinks, gate and up in one matrix."""
    shape = model.shape
    width = shape.shared_feed_forward
    layers.common(model, embedding_std=1 / 12)
    layers.grouped_query_keys(model)
    layers.expert_keys(model, expert_shared_feed_forward_length=width)
    scales(model)
    model.key(
        attention__sliding_window=shape.window,
        attention__sliding_window_pattern=[i % 2 == 0 for i in range(shape.layers)],
        attention__rope_pattern=[i % 4 != 3 for i in range(shape.layers)],
    )
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        layers.pre_norm_attention(model, prefix)
        model.noise(prefix + "attn_sinks.weight", shape.heads, std=1.0)
        layers.router(model, prefix)
        model.matrix(prefix + "ffn_up_shexp", 2 * width, shape.embedding)
        model.matrix(prefix + "ffn_down_shexp", shape.embedding, width)
        layers.experts(model, i)


MODELS = {
    "granitemoe": ZooModel(
        "granitemoe",
        granitemoe,
        Shape(feed_forward=32, shared_experts=2, experts_used=4),
        stands_for="Granite 3 1B-A400M, 3B-A800M, with the shared expert of later ones",
        covers="scaled embedding, residuals, attention and logits; shared expert",
    ),
    "granite_swa": ZooModel(
        "granite_swa",
        granite_swa,
        Shape(layers=4, feed_forward=32, shared_experts=1, experts_used=4, fused_gate_up=True),
        stands_for="Granite models with sliding windows",
        covers="windows and positions per layer, attention sinks, "
        "gate and up in one matrix, also in the shared expert",
    ),
    "minicpm": ZooModel(
        "minicpm",
        minicpm,
        Shape(experts=8, feed_forward=32),
        stands_for="MiniCPM-MoE-8x2B",
        covers="scales that the file does not name",
    ),
    "granite": ZooModel(
        "granite",
        granite,
        Shape(feed_forward=32, shared_experts=1),
        stands_for="what llama.cpp would make of a dense Granite's header with experts",
        covers="no positions at all, embedding added again in a later layer",
    ),
}
