"""MiniMax."""

from __future__ import annotations

from zoo import layers
from zoo.draft import Draft
from zoo.model import ZooModel
from zoo.shape import Shape


def minimax_m2(model: Draft) -> None:
    """Norms over all heads together, positions in half of a head, a selection bias."""
    shape = model.shape
    layers.common(model)
    layers.grouped_query_keys(model)
    layers.expert_keys(model, expert_gating_func=layers.SIGMOID)
    model.key(rope__dimension_count=shape.head_size // 2)
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        layers.pre_norm_attention(model, prefix)
        layers.wide_qk_norms(model, prefix)
        layers.router(model, prefix)
        layers.selection_bias(model, prefix)
        layers.experts(model, i)


def minimax_m3(model: Draft) -> None:
    """Sparse attention: an indexer picks blocks of the context for each group of heads.

    Blocks of four tokens, three of them at most, one of those the token's own.
    """
    shape = model.shape
    index_size = 32
    layers.common(model)
    layers.grouped_query_keys(model)
    layers.shared_expert_keys(model, gating=layers.SIGMOID, scale=2.0)
    model.key(
        rope__dimension_count=shape.head_size // 2,
        attention__indexer__head_count=shape.kv_heads,
        attention__indexer__key_length=index_size,
        attention__indexer__top_k=3,
        attention__indexer__block_size=4,
        attention__indexer__local_blocks=1,
    )
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        layers.pre_norm_attention(model, prefix, qk_norm=True)
        layers.dense_or_routed(model, i)
        if i >= shape.dense_layers:
            index_rows = shape.kv_heads * index_size
            model.matrix(prefix + "indexer.q_proj", index_rows, shape.embedding)
            model.matrix(prefix + "indexer.k_proj", index_size, shape.embedding)
            model.norm(prefix + "indexer.q_norm", index_size)
            model.norm(prefix + "indexer.k_norm", index_size)


MODELS = {
    "minimax-m2": ZooModel(
        "minimax-m2",
        minimax_m2,
        Shape(feed_forward=32, experts_used=4),
        stands_for="MiniMax-M2, M2.1",
        covers="q/k norms over all heads, half-rotated heads, sigmoid router, selection bias",
    ),
    "minimax-m3": ZooModel(
        "minimax-m3",
        minimax_m3,
        Shape(dense_layers=1, shared_experts=1, experts_used=4),
        stands_for="MiniMax-M3",
        covers="sparse attention with a cache for its indexer, clamped SwiGLU, "
        "selection bias, shared expert, leading dense layer",
    ),
}
