"""What a model's header says of it, for people and scripts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from localmoe.weights.catalog import Catalog
from localmoe.weights.gguf_header import GgufHeader
from localmoe.weights.gguf_values import LargeArray

_TEMPLATE_KEY, _SAMPLING_PREFIX = "tokenizer.chat_template", "general.sampling."
Answer = dict[str, Any]


def describe_model(headers: Sequence[GgufHeader], catalog: Catalog) -> Answer:
    """Return a model's sizes, types and tokenizer as plain values. Bytes."""
    tensors = [tensor for header in headers for tensor in header.tensors]
    types: Counter[str] = Counter()
    for tensor in tensors:
        types[tensor.type_name] += tensor.nbytes
    lengths = [layer.expert_nbytes for layer in catalog.layers]
    name = catalog.metadata.get("general.name")
    return {
        "name": name if isinstance(name, str) else None,
        "architecture": catalog.architecture,
        "files": [header.path for header in headers],
        "file_bytes": sum(header.file_nbytes for header in headers),
        "parameters": sum(math.prod(tensor.shape) for tensor in tensors),
        "layers": _number(catalog, "block_count"),
        "moe_layers": len(catalog.layers),
        "experts_per_layer": max((layer.n_experts for layer in catalog.layers), default=0),
        "experts_used": max((layer.n_experts_used for layer in catalog.layers), default=0),
        "context_tokens": _number(catalog, "context_length"),
        "resident_bytes": catalog.resident_nbytes,
        "expert_bytes": catalog.expert_nbytes,
        "unused_bytes": sum(tensor.extent.nbytes for tensor in catalog.unused),
        "smallest_expert_bytes": min(lengths, default=0),
        "largest_expert_bytes": max(lengths, default=0),
        "types": dict(types.most_common()),
        "tokenizer": _text(catalog, "tokenizer.ggml.model"),
        "vocabulary": _length(catalog.metadata.get("tokenizer.ggml.tokens")),
        "chat_template": _text(catalog, _TEMPLATE_KEY),
        "sampling": {
            key.removeprefix(_SAMPLING_PREFIX): value
            for key, value in catalog.metadata.items()
            if key.startswith(_SAMPLING_PREFIX) and isinstance(value, int | float)
        },
    }


def describe_tensors(headers: Sequence[GgufHeader], catalog: Catalog) -> list[Answer]:
    """Return a row for each tensor: where it lies, and whether it is resident, routed or unused."""
    routed = {part.tensor for layer in catalog.layers for part in layer.parts}
    unused = {tensor.name for tensor in catalog.unused}
    return [
        {
            "tensor": tensor.name,
            "shape": _shape(tensor.shape),
            "type": tensor.type_name,
            "file": number,
            "offset": tensor.offset,
            "nbytes": tensor.nbytes,
            "tier": _tier(tensor.name, routed, unused),
        }
        for number, header in enumerate(headers, start=1)
        for tensor in header.tensors
    ]


def _tier(name: str, routed: set[str], unused: set[str]) -> str:
    if name in routed:
        return "routed"
    return "unused" if name in unused else "resident"


def _shape(shape: tuple[int, ...]) -> list[int]:
    used = max((at for at, size in enumerate(shape, start=1) if size != 1), default=1)
    return list(shape[:used])


def _number(catalog: Catalog, key: str) -> int | None:
    value = catalog.metadata.get(f"{catalog.architecture}.{key}")
    return value if isinstance(value, int) else None


def _text(catalog: Catalog, key: str) -> str | None:
    value = catalog.metadata.get(key)
    return value if isinstance(value, str) else None


def _length(value: object) -> int | None:
    if isinstance(value, LargeArray):
        return value.length
    return len(value) if isinstance(value, tuple) else None
