"""Latent attention over chosen positions: an indexer scores all, attention sees the best ones."""

from __future__ import annotations

from zoo import layers
from zoo.draft import Draft

Q_RANK, ROPE = 48, 32
_KV_RANK = 64
# llama.cpp rotates keys as wide as the indexer's: the cached ones must have another width.
_HEADS, _SIZE = 4, 64
CHOSEN = 12
"""Positions that attention sees: fewer than the tests' streams have."""


def sparse_keys(model: Draft) -> None:
    """Add the keys of latent attention and of the indexer."""
    layers.latent_keys(model, q_rank=Q_RANK, kv_rank=_KV_RANK, rope=ROPE)
    model.key(
        attention__indexer__head_count=_HEADS,
        attention__indexer__key_length=_SIZE,
        attention__indexer__top_k=CHOSEN,
    )


def sparse_attention(model: Draft, prefix: str, *, chooses: bool = True) -> None:
    """Add latent attention; a layer that does not choose takes the choice of the one before."""
    layers.latent_attention(model, prefix, q_rank=Q_RANK, kv_rank=_KV_RANK, rope=ROPE)
    if not chooses:
        return
    embedding, index = model.shape.embedding, prefix + "indexer."
    model.norm(index + "k_norm", _SIZE)
    model.noise(index + "k_norm.bias", _SIZE, std=0.1)
    model.matrix(index + "proj", _HEADS, embedding)
    model.matrix(index + "attn_k", _SIZE, embedding)
    model.matrix(index + "attn_q_b", _HEADS * _SIZE, Q_RANK)
