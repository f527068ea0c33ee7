"""DeepSeek-V4: one key for all heads, compressed positions, four streams between the layers."""

from __future__ import annotations

import numpy as np

from zoo import layers
from zoo.draft import Draft
from zoo.encoding import generator
from zoo.model import ZooModel
from zoo.shape import Shape
from zoo.streams import STREAMS, mix_streams, stream_keys
from zoo.tokenizer import vocabulary

_Q_RANK, _ROPE = 48, 16
_OUTPUT_RANK, _OUTPUT_GROUPS = 32, 2
_INDEX_HEADS, _INDEX_SIZE, _CHOSEN = 4, 64, 4
_HASHED_LAYERS = 1
# How many positions become one: none, few with an indexer, or many.
_RATIOS = (0, 4, 128, 4)


def deepseek4(model: Draft) -> None:
    """Windows and compressed positions; a first layer that routes by a table of tokens."""
    shape = model.shape
    layers.common(model)
    layers.shared_expert_keys(model, gating=layers.SQRT_SOFTPLUS, scale=1.5)
    layers.yarn_keys(model)
    _attention_keys(model)
    stream_keys(model)
    model.key(
        embedding_length_out=shape.embedding * STREAMS,
        hash_layer_count=_HASHED_LAYERS,
        swiglu_clamp_exp=[1.0] * shape.layers,
        swiglu_clamp_shexp=[1.0] * shape.layers,
    )
    width = shape.embedding * STREAMS
    model.noise("output_hc_fn.weight", STREAMS, width, std=width**-0.5)
    model.noise("output_hc_base.weight", STREAMS, std=0.5)
    model.noise("output_hc_scale.weight", 1, std=0.1, mean=1.0)
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        mix_streams(model, prefix + "hc_attn")
        model.norm(prefix + "attn_norm", shape.embedding)
        _attention(model, prefix)
        _compressor(model, prefix, _RATIOS[i])
        mix_streams(model, prefix + "hc_ffn")
        model.norm(prefix + "ffn_norm", shape.embedding)
        layers.dense_or_routed(model, i, biased=i >= _HASHED_LAYERS)
        if i < _HASHED_LAYERS:
            _experts_of_tokens(model, prefix)


def _attention_keys(model: Draft) -> None:
    shape = model.shape
    model.key(
        attention__head_count_kv=1,
        attention__key_length=shape.head_size,
        attention__value_length=shape.head_size,
        attention__q_lora_rank=_Q_RANK,
        attention__sliding_window=shape.window,
        attention__output_group_count=_OUTPUT_GROUPS,
        attention__output_lora_rank=_OUTPUT_RANK,
        attention__compress_ratios=list(_RATIOS),
        attention__compress_rope_freq_base=20000.0,
        attention__indexer__head_count=_INDEX_HEADS,
        attention__indexer__key_length=_INDEX_SIZE,
        attention__indexer__top_k=_CHOSEN,
        rope__dimension_count=_ROPE,
        rope__freq_base=10000.0,
    )


def _attention(model: Draft, prefix: str) -> None:
    shape = model.shape
    width = shape.heads * shape.head_size
    model.noise(prefix + "attn_sinks.weight", shape.heads, std=1.0)
    model.matrix(prefix + "attn_q_a", _Q_RANK, shape.embedding)
    model.norm(prefix + "attn_q_a_norm", _Q_RANK)
    model.matrix(prefix + "attn_q_b", width, _Q_RANK)
    model.matrix(prefix + "attn_kv", shape.head_size, shape.embedding)
    model.norm(prefix + "attn_kv_a_norm", shape.head_size)
    inner = _OUTPUT_RANK * _OUTPUT_GROUPS
    model.matrix(prefix + "attn_output_a", inner, width // _OUTPUT_GROUPS)
    model.matrix(prefix + "attn_output_b", shape.embedding, inner, gain=0.7)


def _compressor(model: Draft, prefix: str, ratio: int) -> None:
    """Add what makes one key of `ratio` positions, and the indexer where that is four."""
    if not ratio:
        return
    overlap = 2 if ratio == 4 else 1
    _weighted_mean(model, prefix + "attn_compressor", model.shape.head_size, overlap, ratio)
    if ratio == 4:
        _weighted_mean(model, prefix + "indexer_compressor", _INDEX_SIZE, overlap, ratio)
        model.matrix(prefix + "indexer.proj", _INDEX_HEADS, model.shape.embedding)
        model.matrix(prefix + "indexer.attn_q_b", _INDEX_HEADS * _INDEX_SIZE, _Q_RANK)


def _weighted_mean(model: Draft, name: str, size: int, overlap: int, ratio: int) -> None:
    model.matrix(name + "_kv", overlap * size, model.shape.embedding)
    model.matrix(name + "_gate", overlap * size, model.shape.embedding)
    model.noise(name + "_ape.weight", ratio, overlap * size, std=0.5)
    model.norm(name + "_norm", size)


def _experts_of_tokens(model: Draft, prefix: str) -> None:
    shape = model.shape
    random = generator(shape.seed, prefix + "ffn_gate_tid2eid")
    scores = random.random((len(vocabulary()), shape.experts))
    chosen = np.argsort(scores, axis=1)[:, : shape.experts_used]
    model.table(prefix + "ffn_gate_tid2eid", np.ascontiguousarray(chosen, dtype=np.int32))


MODELS: dict[str, ZooModel] = {
    "deepseek4": ZooModel(
        "deepseek4",
        deepseek4,
        Shape(layers=len(_RATIOS), shared_experts=1, expert_types=(("MXFP4",) * 3,)),
        stands_for="DeepSeek-V4",
        covers="experts chosen by a table of tokens in the first layer, windows, positions "
        "compressed at two ratios, an indexer, attention sinks, four streams, clamped experts",
    ),
}
