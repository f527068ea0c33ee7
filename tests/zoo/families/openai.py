"""gpt-oss."""

from __future__ import annotations

from zoo import layers
from zoo.draft import Draft
from zoo.model import ZooModel
from zoo.shape import Shape


def gpt_oss(model: Draft) -> None:
    """Biases everywhere, the experts included; attention sinks, windows in every other layer."""
    shape = model.shape
    layers.common(model)
    layers.grouped_query_keys(model)
    layers.expert_keys(model)
    model.key(attention__sliding_window=shape.window)
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        model.norm(prefix + "attn_norm", shape.embedding)
        layers.grouped_query(model, prefix, bias=True)
        model.noise(prefix + "attn_sinks.weight", shape.heads, std=1.0)
        model.norm(prefix + "post_attention_norm", shape.embedding)
        layers.router(model, prefix, bias=True)
        layers.experts(model, i, bias=True)


MODELS = {
    # Parts of 1088 bytes, biases of 128 and 256.
    "gpt-oss": ZooModel(
        "gpt-oss",
        gpt_oss,
        Shape(layers=4, expert_types=(("MXFP4",) * 3,)),
        stands_for="gpt-oss-20b, gpt-oss-120b",
        covers="biases of experts, attention sinks, windows, MXFP4",
    ),
}
