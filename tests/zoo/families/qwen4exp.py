"""Qwen's successor of the hybrids: parallel residual streams, and a table of word pairs."""

from __future__ import annotations

from zoo import layers
from zoo.draft import Draft, Wide
from zoo.families import qwen_hybrid
from zoo.model import ZooModel
from zoo.shape import Shape
from zoo.tokenizer import END_OF_TEXT, vocabulary

_STREAMS = 2
_INDEX_HEADS, _INDEX_SIZE = 2, 32
_BLOCK = 4
"""Tokens that the index of attention takes as one."""
_NGRAM, _HEADS_PER_NGRAM, _KERNEL = 3, 2, 3
"""Up to three tokens are hashed, twice per length; what comes of it passes a convolution."""
_ROWS = (101, 103, 107, 109)
"""Rows of the table per hash."""
_TABLE_LAYER = 2
"""The layer that reads the table: it has to be recurrent."""


def qwen4exp(model: Draft) -> None:
    """Hyper-connections for norms, attention over chosen blocks, n-grams looked up in a table."""
    shape = model.shape
    layers.common(model, last_norm="output_hc_norm")
    qwen_hybrid.keys(model)
    qwen_hybrid.sections(model)
    _sparse_keys(model)
    _table(model)
    _mix(model, "output_hc")  # its norm is as wide as all streams, and replaces the one above
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        for name in ("hc_attn", "hc_ffn"):
            _mix(model, prefix + name)
            width = _STREAMS * shape.embedding
            model.matrix(f"{prefix}{name}_inject", _STREAMS, width)
        qwen_hybrid.token_mixer(model, i)
        if not qwen_hybrid.is_recurrent(i):
            _index(model, prefix)
        if i == _TABLE_LAYER:
            _reads_table(model, prefix)
        qwen_hybrid.feed_forward(model, i)


def _sparse_keys(model: Draft) -> None:
    """Attention reads two blocks of four tokens, and the last tokens that fill no block."""
    recurrent = [qwen_hybrid.is_recurrent(i) for i in range(model.shape.layers)]
    model.key(
        hyper_connection__count=_STREAMS,
        hyper_connection__low_rank=16,
        attention__indexer__head_count=_INDEX_HEADS,
        attention__indexer__key_length=_INDEX_SIZE,
        attention__indexer__top_k=2 * _BLOCK,
        attention__compress_ratios=[0 if here else _BLOCK for here in recurrent],
    )


def _table(model: Draft) -> None:
    """Add the table; the hashes of n-grams of two and of three tokens have their own rows."""
    size = model.shape.embedding // len(_ROWS)
    model.matrix("per_layer_token_embd", sum(_ROWS), size, gain=size**0.5)
    model.key(
        ple__layers=[_TABLE_LAYER],
        ple__ngram_size=_NGRAM,
        ple__heads_per_ngram=_HEADS_PER_NGRAM,
        ple__conv_kernel=_KERNEL,
        ple__eos_token_id=vocabulary().index(END_OF_TEXT),
        embedding_length_per_layer_input=size,
        ple__layer_multipliers=Wide((35184372088891, 26388279066749, 17592186044423)),
        ple__head_offsets=Wide(sum(_ROWS[:i]) for i in range(len(_ROWS))),
        ple__head_vocab_sizes=Wide(_ROWS),
    )


def _mix(model: Draft, name: str) -> None:
    """Add what makes one stream of all: a norm, and gates of low rank."""
    width = _STREAMS * model.shape.embedding
    model.norm(name + "_norm", width)
    model.matrix(name + "_down", 16, width)
    model.matrix(name + "_up", width, 16)


def _index(model: Draft, prefix: str) -> None:
    embedding = model.shape.embedding
    model.matrix(prefix + "indexer.q_proj", _INDEX_HEADS * _INDEX_SIZE, embedding)
    model.matrix(prefix + "indexer.k_proj", _INDEX_SIZE, embedding)
    model.norm(prefix + "indexer.q_norm", _INDEX_SIZE)
    model.norm(prefix + "indexer.k_norm", _INDEX_SIZE)


def _reads_table(model: Draft, prefix: str) -> None:
    embedding, width = model.shape.embedding, _STREAMS * model.shape.embedding
    model.matrix(prefix + "ple_key", width, embedding)
    model.matrix(prefix + "ple_value", embedding, embedding)
    for name in ("key", "query", "conv"):
        model.norm(f"{prefix}ple_norm_{name}", width)
    model.noise(prefix + "ple_conv1d.weight", width, _KERNEL, std=0.5)


MODELS = {
    "qwen4exp": ZooModel(
        "qwen4exp",
        qwen4exp,
        Shape(layers=4, experts_used=4),
        stands_for="Qwen3.8-Flash-Next",
        covers="parallel residual streams, delta nets, attention over chosen blocks, a table of "
        "n-grams, rotation in sections, gated shared expert",
    ),
}
