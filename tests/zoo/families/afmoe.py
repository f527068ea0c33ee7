"""Arcee's Trinity."""

from __future__ import annotations

from zoo import layers
from zoo.draft import Draft
from zoo.model import ZooModel
from zoo.shape import Shape


def afmoe(model: Draft) -> None:
    """Sandwich norms, gated attention, sliding windows, a shared expert, a selection bias."""
    shape = model.shape
    # The graph multiplies the embedding by the root of its width.
    layers.common(model, embedding_std=shape.embedding**-0.5)
    layers.grouped_query_keys(model)
    layers.shared_expert_keys(model, gating=layers.SIGMOID, scale=2.5)
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
        layers.dense_or_routed(model, i)


MODELS = {
    "afmoe": ZooModel(
        "afmoe",
        afmoe,
        Shape(layers=5, dense_layers=1, shared_experts=1),
        stands_for="Trinity Nano, Mini, Large",
        covers="sandwich norms, gated attention, windows, a layer without positions, "
        "selection bias, shared expert, leading dense layer",
    ),
}
