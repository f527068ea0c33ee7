"""Bounds for the scratch memory of products: llama.cpp allocates it when it first computes."""

from __future__ import annotations

from collections.abc import Sequence

from localmoe.planning.request import ChunkFootprint, Request

_ROW_MAPPING_NBYTES = 8  # per slot, expert of a token and token: llama.cpp groups rows by expert
_PAGE_NBYTES = 4096
_TILE_NBYTES = 512 << 10  # per thread, in each of llama.cpp's work buffers: TILED_WS_SLOT


def work_bytes(request: Request, footprint: ChunkFootprint, counts: Sequence[int]) -> int:
    """Bound the scratch memory of a product with experts: rows by slot, and its quantized input.

    llama.cpp keeps one such buffer, as large as the largest product of the graph needs.
    """
    layers, tokens = request.catalog.layers, footprint.chunk_tokens
    embedding = _dimension(request, "embedding_length")
    dense = max(embedding, _dimension(request, "feed_forward_length"))
    if not layers:
        return _product_bytes(request, 0, tokens, 1, tokens * dense)
    n_matrices = max(counts or (layer.n_experts for layer in layers))
    used = max(layer.n_experts_used for layer in layers)
    # Llama 4 gives each of a token's experts a row of its own. Others are as wide elsewhere: in
    # attention, or where several streams are mixed.
    widest = used * tokens * max(embedding, _expert_width(request))
    whole = _product_bytes(request, n_matrices, tokens, used, max(widest, tokens * dense))
    return whole + _passes_bytes(request, footprint, counts)


def _product_bytes(request: Request, n_matrices: int, tokens: int, used: int, inputs: int) -> int:
    """Bound one product of so many numbers with matrices, of which each token uses some."""
    mapping = used * tokens * _ROW_MAPPING_NBYTES
    if request.sparse:
        # There is room for all rows behind each matrix; a token uses an expert once at most.
        mapping = min(mapping, tokens * _ROW_MAPPING_NBYTES + 2 * _PAGE_NBYTES)
    return n_matrices * (mapping + 128) + inputs * 2 + request.threads * _TILE_NBYTES


def _passes_bytes(request: Request, footprint: ChunkFootprint, counts: Sequence[int]) -> int:
    """Bound what passes take where a step can ask for more experts than there may be slots.

    A pass has at most as many rows as the step has tokens, and buffers for them of its own.
    """
    tokens = footprint.chunk_tokens
    # Not by the slots that there are: less memory for passes with more slots would let a plan fit
    # again that did not fit with fewer.
    demands = [(c.token_demand, c) for c in (request.classes if counts else ())]
    tight = [
        layer.n_experts
        for demand, slot_class in demands
        for layer in slot_class.layers
        if demand < min(layer.n_experts, layer.n_experts_used * tokens)
    ]
    if not tight:
        return 0
    embedding = _dimension(request, "embedding_length")
    expert = _expert_width(request)
    widest = max(embedding, expert)
    results = max(embedding, 2 * expert)  # gate and up may be one product
    moved = tokens * (widest + results) * 4
    return _product_bytes(request, max(tight), tokens, 1, tokens * widest) + moved


def _expert_width(request: Request) -> int:
    width = _dimension(request, "expert_feed_forward_length")
    return width or _dimension(request, "feed_forward_length")


def _dimension(request: Request, key: str) -> int:
    value = request.catalog.metadata.get(f"{request.catalog.architecture}.{key}", 0)
    if isinstance(value, tuple):
        value = max((v for v in value if isinstance(v, int)), default=0)
    return value if isinstance(value, int) else 0
