"""Qwen: grouped-query attention with q/k norms; the hybrids."""

from __future__ import annotations

from zoo import layers
from zoo.draft import Draft
from zoo.model import ZooModel
from zoo.shape import Shape


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


MODELS = {
    # Parts of 8192 bytes, at aligned offsets in the file.
    "qwen3moe": ZooModel(
        "qwen3moe",
        qwen3moe,
        Shape(alignment=4096),
        stands_for="Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder",
        covers="q/k norms, softmax router, experts in every layer",
    ),
}
