"""Models whose layers are partly recurrent: a state in place of a KV cache."""

from __future__ import annotations

from zoo import layers
from zoo.draft import Draft
from zoo.model import ZooModel
from zoo.shape import Shape

_KERNEL = 4
"""Tokens under a convolution, the present one included."""


def _attention_only_in(model: Draft, has_attention: list[bool], kv_heads: int) -> None:
    """Give the other layers no heads for keys and values: that makes them recurrent."""
    model.key(attention__head_count_kv=[kv_heads * here for here in has_attention])


def lfm2moe(model: Draft) -> None:
    """Short convolutions with attention in between; the embedding is the output matrix, too."""
    shape = model.shape
    layers.common(model, embedding_std=0.5, tied=True, last_norm="token_embd_norm")
    layers.grouped_query_keys(model)
    has_attention = [i % 3 == 1 for i in range(shape.layers)]
    _attention_only_in(model, has_attention, shape.kv_heads)
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


MODELS = {
    "lfm2moe": ZooModel(
        "lfm2moe",
        lfm2moe,
        Shape(layers=5, head_size=16, dense_layers=1),
        stands_for="LFM2-8B-A1B, LFM2-24B-A2B",
        covers="short convolutions, selection bias, a leading dense layer, "
        "embedding and output in one matrix",
    ),
}
