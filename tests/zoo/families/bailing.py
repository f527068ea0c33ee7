"""Ling and Ring (bailingmoe), and what is close to them."""

from __future__ import annotations

from zoo import layers
from zoo.draft import Draft
from zoo.model import ZooModel
from zoo.shape import Shape


def bailingmoe(model: Draft) -> None:
    """Ling's form: experts in every layer beside shared ones, softmax router."""
    layers.common(model)
    layers.grouped_query_keys(model)
    layers.shared_expert_keys(model, gating=layers.SOFTMAX)
    for i in range(model.shape.layers):
        layers.pre_norm_attention(model, f"blk.{i}.")
        layers.dense_or_routed(model, i, biased=False)


def bailingmoe2(model: Draft) -> None:
    """Ling 2's form: q, k and v in one matrix, expert groups, a layer behind the last one."""
    shape = model.shape
    layers.common(model)
    layers.grouped_query_keys(model)
    layers.shared_expert_keys(model, gating=layers.SIGMOID, scale=2.5)
    model.key(expert_group_count=4, expert_group_used_count=2)
    model.key(rope__dimension_count=shape.head_size // 2)
    model.key(block_count=shape.layers + 1, nextn_predict_layers=1)
    for i in range(shape.layers + 1):
        prefix = f"blk.{i}."
        model.norm(prefix + "attn_norm", shape.embedding)
        layers.grouped_query_in_one(model, prefix, qk_norm=True)
        model.norm(prefix + "ffn_norm", shape.embedding)
        layers.dense_or_routed(model, i)
    layers.next_token_head(model, f"blk.{shape.layers}.")
    model.norm(f"blk.{shape.layers}.layer_output_norm", shape.embedding)


MODELS: dict[str, ZooModel] = {
    "bailingmoe": ZooModel(
        "bailingmoe",
        bailingmoe,
        Shape(shared_experts=2, expert_types=(("Q8_0",) * 3,)),
        stands_for="Ling Lite, Ling Plus",
        covers="two shared experts in every layer, softmax router",
    ),
    "bailingmoe2": ZooModel(
        "bailingmoe2",
        bailingmoe2,
        # The heads together are as wide as the embedding: the loader wants it.
        Shape(
            head_size=16,
            dense_layers=1,
            shared_experts=1,
            expert_types=(("Q8_0", "Q8_0", "Q5_0"),),
        ),
        stands_for="Ling 2.0 mini and flash, Ring 2.0",
        covers="q, k and v in one matrix, q/k norms, expert groups, selection bias, "
        "half of a head rotated, an unused layer that predicts further tokens",
    ),
}
