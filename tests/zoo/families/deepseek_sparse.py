"""DeepSeek-V3.2 and later: latent attention over chosen positions."""

from __future__ import annotations

from zoo import layers
from zoo.draft import Draft
from zoo.indexer import sparse_attention, sparse_keys
from zoo.model import ZooModel
from zoo.shape import Shape


def deepseek32(model: Draft) -> None:
    """DeepSeek-V3 with an indexer in every layer, and a layer behind the last one."""
    shape = model.shape
    layers.common(model)
    sparse_keys(model)
    layers.yarn_keys(model, log_multiplier=0.1)
    layers.shared_expert_keys(model, gating=layers.SIGMOID, scale=2.5)
    model.key(expert_group_count=4, expert_group_used_count=2)
    model.key(block_count=shape.layers + 1, nextn_predict_layers=1)
    for i in range(shape.layers + 1):
        prefix = f"blk.{i}."
        model.norm(prefix + "attn_norm", shape.embedding)
        sparse_attention(model, prefix)
        model.norm(prefix + "ffn_norm", shape.embedding)
        layers.dense_or_routed(model, i)
    layers.next_token_head(model, f"blk.{shape.layers}.")


MODELS: dict[str, ZooModel] = {
    "deepseek32": ZooModel(
        "deepseek32",
        deepseek32,
        Shape(dense_layers=1, shared_experts=1),
        stands_for="DeepSeek-V3.2",
        covers="attention to positions that an indexer chooses, expert groups, selection bias, "
        "YaRN, an unused layer that predicts further tokens",
    ),
}
