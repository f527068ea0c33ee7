"""What a token of a safetensors checkpoint multiplies with: bytes by type, and numbers."""

from __future__ import annotations

from collections import Counter

from localmoe.planning.kept_context import DTYPE_NBYTES
from localmoe.planning.token_work import TokenWork
from localmoe.weights.checkpoint_config import CheckpointConfig
from localmoe.weights.checkpoint_layout import CheckpointLayout

_EMBEDDINGS = (
    *("embed_tokens.weight", "word_embeddings.weight", "tok_embeddings.weight"),
    *("embedding.weight", "embed.weight", "embeddings.weight", "wte.weight"),
)
_HEADS = ("lm_head.weight", "output.weight", "embed_out.weight")
_SENSES = ("vision", "visual", "audio", "image", "mm_projector", "multi_modal_projector")
"""In names of what sees and hears: resident, and not used by a token of text."""


def checkpoint_work(layout: CheckpointLayout) -> TokenWork:
    """Add up the matrices that a token passes; what is encoded is resident as it is computed with.

    Experts are as they are stored: they are decoded whenever they are used.
    """
    dtype = layout.config.dtype
    resident: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    has_head = any(weight.name.endswith(_HEADS) for weight in layout.resident)
    for weight in layout.resident:
        if (has_head and weight.name.endswith(_EMBEDDINGS)) or _senses(weight.name):
            continue
        kind = dtype if weight.is_encoded else weight.kind
        nbytes = weight.decoded_nbytes(DTYPE_NBYTES[dtype])
        resident[kind] += nbytes
        numbers[kind] += weight.n_numbers
    routed, routed_numbers = _routed(layout)
    nbytes_of = resident + routed
    numbers += routed_numbers
    layers = layout.catalog.layers
    return TokenWork(
        resident=dict(resident),
        routed=dict(routed),
        layers=layout.config.n_layers or len(layers),
        moe_layers=len(layers),
        experts_used=max((layer.n_experts_used for layer in layers), default=0),
        numbers_per_byte={kind: numbers[kind] / nbytes_of[kind] for kind in nbytes_of},
        queries_per_key=_queries_per_key(layout.config),
    )


def _queries_per_key(config: CheckpointConfig) -> float:
    """Return query heads for each key head; latent attention says that they are as many."""
    heads = config.number("num_attention_heads") or 1
    return heads / (config.number("num_key_value_heads") or heads)


def _routed(layout: CheckpointLayout) -> tuple[Counter[str], Counter[str]]:
    """Return bytes and numbers of the experts of one token, all layers together."""
    nbytes: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    for layer in layout.catalog.layers:
        for weight in layout.experts[layer.layer]:
            nbytes[weight.kind] += weight.nbytes * layer.n_experts_used
            numbers[weight.kind] += weight.n_numbers * layer.n_experts_used
    return nbytes, numbers


def resident_nbytes(layout: CheckpointLayout) -> int:
    """Return what stays in memory, decoded."""
    size = DTYPE_NBYTES[layout.config.dtype]
    return sum(weight.decoded_nbytes(size) for weight in layout.resident)


def _senses(name: str) -> bool:
    return any(sense in name for sense in _SENSES)
