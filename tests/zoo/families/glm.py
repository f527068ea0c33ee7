"""Zhipu's GLM."""

from __future__ import annotations

import dataclasses

from zoo import layers
from zoo.draft import Draft
from zoo.indexer import sparse_attention, sparse_keys
from zoo.model import ZooModel
from zoo.shape import Shape


def glm4moe(model: Draft) -> None:
    """GLM-4.5's form: biases of q, k and v, half of a head rotated, a layer behind the last one."""
    _glm4moe(model, qk_norm=True)


def glm4moe_air(model: Draft) -> None:
    """The same without q/k norms."""
    _glm4moe(model, qk_norm=False)


def _glm4moe(model: Draft, *, qk_norm: bool) -> None:
    shape = model.shape
    layers.common(model)
    layers.grouped_query_keys(model)
    layers.shared_expert_keys(model, gating=layers.SIGMOID, scale=2.5 if qk_norm else 1.0)
    model.key(rope__dimension_count=shape.head_size // 2, rope__freq_base=1e6)
    model.key(block_count=shape.layers + 1, nextn_predict_layers=1)
    for i in range(shape.layers + 1):
        prefix = f"blk.{i}."
        model.norm(prefix + "attn_norm", shape.embedding)
        layers.grouped_query(model, prefix, bias=True, output_bias=False, qk_norm=qk_norm)
        model.norm(prefix + "post_attention_norm", shape.embedding)
        layers.dense_or_routed(model, i)
    layers.next_token_head(model, f"blk.{shape.layers}.")


def glm_dsa(model: Draft) -> None:
    """GLM-5's form: latent attention to chosen positions; some layers share the choice."""
    shape = model.shape
    layers.common(model)
    sparse_keys(model)
    layers.shared_expert_keys(model, gating=layers.SIGMOID, scale=2.5)
    chooses = [i % 2 == 0 for i in range(shape.layers)]
    model.key(attention__indexer__types=chooses, rope__freq_base=1e6)
    model.key(block_count=shape.layers + 1, nextn_predict_layers=1)
    for i in range(shape.layers + 1):
        prefix = f"blk.{i}."
        model.norm(prefix + "attn_norm", shape.embedding)
        sparse_attention(model, prefix, chooses=i == shape.layers or chooses[i])
        model.norm(prefix + "ffn_norm", shape.embedding)
        layers.dense_or_routed(model, i)
    layers.next_token_head(model, f"blk.{shape.layers}.")


_SHAPE = Shape(dense_layers=1, shared_experts=1)

MODELS: dict[str, ZooModel] = {
    "glm4moe": ZooModel(
        "glm4moe",
        glm4moe,
        dataclasses.replace(_SHAPE, expert_types=(("Q4_0", "Q4_0", "Q8_0"),)),
        stands_for="GLM-4.5, 4.6, 4.7",
        covers="q/k norms, biases of q, k and v, half of a head rotated, selection bias, "
        "shared expert, an unused layer that predicts further tokens",
    ),
    "glm4moe-air": ZooModel(
        "glm4moe",
        glm4moe_air,
        dataclasses.replace(_SHAPE, expert_types=(("Q5_0", "Q5_0", "Q8_0"),)),
        stands_for="GLM-4.5-Air",
        covers="the same without q/k norms",
    ),
    "glm-dsa": ZooModel(
        "glm-dsa",
        glm_dsa,
        dataclasses.replace(_SHAPE, layers=4, expert_types=(("Q8_0",) * 3,)),
        stands_for="GLM-5, 5.1, 5.2",
        covers="attention to positions that an indexer chooses, layers that share the choice, "
        "selection bias, an unused layer that predicts further tokens",
    ),
}
