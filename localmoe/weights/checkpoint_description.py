"""What a safetensors checkpoint says of itself, for people and scripts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

from localmoe.weights.checkpoint_config import read_object
from localmoe.weights.checkpoint_layout import CheckpointLayout

_SAMPLING = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
_TEMPLATE_FILE, _TEMPLATE_KEY = "chat_template.jinja", "chat_template"
_MAX_TEMPLATE_NBYTES = 4 << 20
Answer = dict[str, Any]


def describe_checkpoint(layout: CheckpointLayout) -> Answer:
    """Return a checkpoint's sizes, types and tokenizer as plain values. Bytes.

    Raises ModelFormatError for a damaged file beside it.
    """
    catalog, config = layout.catalog, layout.config
    folder = os.path.dirname(config.path)
    tokenizer = _object(folder, "tokenizer_config.json")
    lengths = [layer.expert_nbytes for layer in catalog.layers]
    return {
        "name": None,
        "architecture": catalog.architecture,
        "files": list(catalog.paths),
        "file_bytes": sum(os.path.getsize(path) for path in catalog.paths),
        "parameters": _parameters(layout),
        "layers": config.n_layers,
        "moe_layers": len(catalog.layers),
        "experts_per_layer": max((layer.n_experts for layer in catalog.layers), default=0),
        "experts_used": max((layer.n_experts_used for layer in catalog.layers), default=0),
        "context_tokens": config.context_tokens,
        "resident_bytes": catalog.resident_nbytes,
        "expert_bytes": catalog.expert_nbytes,
        "unused_bytes": sum(tensor.extent.nbytes for tensor in catalog.unused),
        "smallest_expert_bytes": min(lengths, default=0),
        "largest_expert_bytes": max(lengths, default=0),
        "types": _types(layout),
        "tokenizer": _text(tokenizer.get("tokenizer_class")),
        "vocabulary": config.number("vocab_size"),
        "chat_template": _template(folder, tokenizer),
        "sampling": _sampling(_object(folder, "generation_config.json")),
    }


def describe_stored_tensors(layout: CheckpointLayout) -> list[Answer]:
    """Return a row for each tensor: where it lies, and whether it is resident, routed or unused."""
    resident = {tensor.name for tensor in layout.catalog.resident}
    unused = {tensor.name for tensor in layout.catalog.unused}
    numbers = {path: number for number, path in enumerate(layout.catalog.paths, start=1)}
    return [
        {
            "tensor": tensor.name,
            "shape": list(tensor.shape),
            "type": tensor.dtype,
            "file": numbers[tensor.extent.path],
            "offset": tensor.extent.offset,
            "nbytes": tensor.extent.nbytes,
            "tier": "resident"
            if tensor.name in resident
            else "unused"
            if tensor.name in unused
            else "routed",
        }
        for tensor in layout.tensors.values()
    ]


def _parameters(layout: CheckpointLayout) -> int:
    """Return how many numbers the weights are that are used, decoded."""
    routed = sum(
        layer.n_experts * sum(weight.n_numbers for weight in layout.experts[layer.layer])
        for layer in layout.catalog.layers
    )
    return routed + sum(weight.n_numbers for weight in layout.resident)


def _types(layout: CheckpointLayout) -> dict[str, int]:
    types: Counter[str] = Counter()
    for tensor in layout.tensors.values():
        types[tensor.dtype] += tensor.extent.nbytes
    return dict(types.most_common())


def _template(folder: str, tokenizer: Mapping[str, Any]) -> str | None:
    """Return the chat template: a file of its own comes first, as for transformers."""
    path = os.path.join(folder, _TEMPLATE_FILE)
    if os.path.isfile(path):
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(_MAX_TEMPLATE_NBYTES)
    found = _object(folder, "chat_template.json").get(_TEMPLATE_KEY, tokenizer.get(_TEMPLATE_KEY))
    if isinstance(found, list):  # several, each with a name
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    return _text(found)


def _sampling(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        ours: values[theirs]
        for theirs, ours in _SAMPLING.items()
        if type(values.get(theirs)) in (int, float)
    }


def _object(folder: str, name: str) -> dict[str, Any]:
    """Return the object in a file that need not be there. Raises ModelFormatError."""
    path = os.path.join(folder, name)
    return read_object(path) if os.path.exists(path) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
