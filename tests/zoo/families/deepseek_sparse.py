"""DeepSeek-V3.2 and later: latent attention over chosen positions."""

from __future__ import annotations

from zoo import layers
from zoo.draft import Draft
from zoo.indexer import Q_RANK, ROPE, sparse_attention, sparse_keys
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


_WINDOW_HEADS, _WINDOW_PLAIN, _WINDOW_KV_RANK = 2, 16, 32


def dots3note(model: Draft) -> None:
    """Windows and chosen positions in turn, of other sizes; gates on the heads' outputs."""
    shape = model.shape
    windows = [i % 2 == 1 for i in range(shape.layers)]
    # A layer that drafts lies behind the last one; it has a window and no experts.
    heads = [_WINDOW_HEADS if window else shape.heads for window in [*windows, True]]
    layers.common(model)
    sparse_keys(model)
    layers.shared_expert_keys(model, gating=layers.SIGMOID, scale=2.5)
    model.key(
        block_count=shape.layers + 1,
        nextn_predict_layers=1,
        attention__head_count=heads,
        attention__indexer__types=[not window for window in windows],
        attention__sliding_window=shape.window,
        attention__sliding_window_pattern=windows,
        attention__kv_lora_rank_swa=_WINDOW_KV_RANK,
        attention__key_length_swa=_WINDOW_KV_RANK + ROPE,
        attention__value_length_swa=_WINDOW_KV_RANK,
        attention__key_length_mla_swa=_WINDOW_PLAIN + ROPE,
        attention__value_length_mla_swa=_WINDOW_PLAIN,
        rope__freq_base_swa=5000.0,
    )
    for i, window in enumerate(windows):
        _gated_attention(model, f"blk.{i}.", window=window)
        layers.dense_or_routed(model, i)
    prefix = f"blk.{shape.layers}."
    _gated_attention(model, prefix, window=True)
    layers.gated(model, prefix, "", shape.feed_forward)
    layers.next_token_head(model, prefix)


def _gated_attention(model: Draft, prefix: str, *, window: bool) -> None:
    embedding = model.shape.embedding
    model.norm(prefix + "attn_norm", embedding)
    if window:
        layers.latent_attention(
            model,
            prefix,
            q_rank=Q_RANK,
            kv_rank=_WINDOW_KV_RANK,
            rope=ROPE,
            heads=_WINDOW_HEADS,
            plain=_WINDOW_PLAIN,
        )
    else:
        sparse_attention(model, prefix)
    model.norm(prefix + "attn_k_norm", ROPE)
    heads = _WINDOW_HEADS if window else model.shape.heads
    model.matrix(prefix + "attn_gate", heads, embedding)
    model.norm(prefix + "ffn_norm", embedding)


MODELS: dict[str, ZooModel] = {
    "deepseek32": ZooModel(
        "deepseek32",
        deepseek32,
        Shape(dense_layers=1, shared_experts=1, expert_types=(("Q4_0", "Q4_0", "Q5_0"),)),
        stands_for="DeepSeek-V3.2",
        covers="attention to positions that an indexer chooses, expert groups, selection bias, "
        "YaRN, an unused layer that predicts further tokens",
    ),
    "dots3note": ZooModel(
        "dots3note",
        dots3note,
        Shape(layers=5, dense_layers=1, shared_experts=1, expert_types=(("Q8_0",) * 3,)),
        stands_for="dots3-note",
        covers="windows and positions that an indexer chooses in turn, heads that differ per "
        "layer, gated heads, selection bias, shared expert",
    ),
}
