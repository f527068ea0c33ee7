"""The first Mixture-of-Experts models of Databricks, xAI and Snowflake."""

from __future__ import annotations

from zoo import layers
from zoo.draft import Draft
from zoo.model import ZooModel
from zoo.shape import Shape


def dbrx(model: Draft) -> None:
    """Norms that centre, one matrix for queries, keys and values, their results clamped."""
    shape = model.shape
    layers.common(model)
    layers.grouped_query_keys(model)
    layers.expert_keys(model)
    model.key(attention__layer_norm_epsilon=1e-5, attention__clamp_kqv=1.5)
    rows = (shape.heads + 2 * shape.kv_heads) * shape.head_size
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        model.norm(prefix + "attn_norm", shape.embedding)
        model.matrix(prefix + "attn_qkv", rows, shape.embedding)
        model.matrix(prefix + "attn_output", shape.embedding, shape.embedding, gain=0.7)
        model.norm(prefix + "attn_output_norm", shape.embedding)
        layers.router(model, prefix)
        layers.experts(model, i)


def grok(model: Draft) -> None:
    """Sandwich norms, capped logits of attention and output, a dense feed-forward beside."""
    shape = model.shape
    layers.common(model, embedding_std=0.1)
    layers.grouped_query_keys(model)
    layers.expert_keys(model)
    model.key(
        embedding_scale=10.0,
        attention__output_scale=0.25,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=15.0,
        logit_scale=1.5,
    )
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        layers.pre_norm_attention(model, prefix)
        model.norm(prefix + "attn_output_norm", shape.embedding, mean=0.5)
        layers.gated(model, prefix, "", shape.feed_forward)
        layers.router(model, prefix)
        layers.experts(model, i)
        model.norm(prefix + "post_ffw_norm", shape.embedding, mean=0.5)


def arctic(model: Draft) -> None:
    """A dense feed-forward after attention, and experts that work on the layer's input."""
    shape = model.shape
    layers.common(model)
    layers.grouped_query_keys(model)
    layers.expert_keys(model)
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        layers.pre_norm_attention(model, prefix)
        layers.gated(model, prefix, "", shape.embedding)
        model.norm(prefix + "ffn_norm_exps", shape.embedding)
        layers.router(model, prefix)
        layers.experts(model, i)


MODELS = {
    "dbrx": ZooModel(
        "dbrx",
        dbrx,
        Shape(head_size=16, feed_forward=32, experts_used=4),
        stands_for="DBRX",
        covers="norms that centre, q, k and v in one matrix, clamped",
    ),
    "grok": ZooModel(
        "grok",
        grok,
        Shape(head_size=16, experts=8),
        stands_for="Grok-1, Grok-2",
        covers="GELU, sandwich norms, capped logits, no flash attention, dense layer beside",
    ),
    "arctic": ZooModel(
        "arctic",
        arctic,
        Shape(head_size=16, feed_forward=32),
        stands_for="Snowflake Arctic",
        covers="experts on the input of the layer, beside a dense feed-forward",
    ),
}
