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
        width = shape.shared_experts * shape.expert_feed_forward
        model.key(expert_shared_feed_forward_length=width)
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        layers.pre_norm_attention(model, prefix)
        layers.router(model, prefix)
        if shape.shared_experts:
            layers.shared_expert(model, prefix)
        layers.experts(model, i)


MODELS = {
    "granitemoe": ZooModel(
        "granitemoe",
        granitemoe,
        Shape(feed_forward=32, shared_experts=2, experts_used=4),
        stands_for="Granite 3 1B-A400M, 3B-A800M, with the shared expert of later ones",
        covers="scaled embedding, residuals, attention and logits; shared expert",
    ),
}
