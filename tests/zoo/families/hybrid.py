"""Models whose layers are partly recurrent: a state in place of a KV cache."""

from __future__ import annotations

from zoo import layers
from zoo.draft import Draft
from zoo.model import ZooModel
from zoo.shape import Shape

_KERNEL = 4
"""Tokens under a convolution, the present one included."""


def lfm2moe(model: Draft) -> None:
    """Short convolutions with attention in between; the embedding is the output matrix, too."""
    shape = model.shape
    layers.common(model, embedding_std=0.5, tied=True, last_norm="token_embd_norm")
    layers.grouped_query_keys(model)
    has_attention = [i % 3 == 1 for i in range(shape.layers)]
    # Layers without heads for keys are recurrent.
    model.key(attention__head_count_kv=[shape.kv_heads * here for here in has_attention])
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


def minimax_01(model: Draft) -> None:
    """Lightning attention, whose heads forget at fixed rates; the norms' outputs are passed on."""
    shape = model.shape
    layers.common(model)
    layers.grouped_query_keys(model)
    layers.expert_keys(model)
    model.key(
        rope__dimension_count=shape.head_size // 2, full_attention_interval=2, residual_scale=3.5
    )
    width = shape.heads * shape.head_size
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        model.norm(prefix + "attn_norm", shape.embedding)
        if i % 2 == 1:
            layers.grouped_query(model, prefix)
        else:
            model.matrix(prefix + "attn_qkv", 3 * width, shape.embedding)
            model.matrix(prefix + "attn_gate", width, shape.embedding)
            model.norm(prefix + "attn_norm_2", width)
            model.matrix(prefix + "attn_output", shape.embedding, width)
        model.norm(prefix + "ffn_norm", shape.embedding)
        layers.router(model, prefix)
        layers.experts(model, i)


MODELS = {
    "lfm2moe": ZooModel(
        "lfm2moe",
        lfm2moe,
        Shape(layers=5, head_size=16, dense_layers=1),
        stands_for="LFM2-8B-A1B, LFM2-24B-A2B",
        covers="short convolutions, selection bias, a leading dense layer, "
        "embedding and output in one matrix",
    ),
    # One key says how wide dense layers and experts are.
    "minimax-01": ZooModel(
        "minimax-01",
        minimax_01,
        Shape(layers=4, feed_forward=32),
        stands_for="MiniMax-Text-01, MiniMax-M1",
        covers="lightning attention, partial rotation, scaled residuals",
    ),
}
