"""Saved contexts: the tensors of a cache in a safetensors file, sealed with a checksum."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from transformers import DynamicCache

from localmoe.backends.sealed_state import read_sealed, unusable, write_sealed
from localmoe.backends.torch.kv_cache import KvCache
from localmoe.backends.torch.kv_layer import held_values
from localmoe.errors import EngineError

_PLAIN = (bool, int, float, str, type(None))


def write(kv: KvCache, path: Path, stamp: str) -> None:
    """Write a context, whole or not at all. Raises EngineError."""
    tensors: dict[str, Tensor] = {"tokens": torch.tensor(kv.tokens, dtype=torch.int64)}
    layers = [
        _packed(held_values(layer), f"{place}", tensors)
        for place, layer in enumerate(kv.cache.layers)
    ]
    head = {"stamp": stamp, "layers": json.dumps(layers)}
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, head)
    write_sealed(path, [data])


def read(
    kv: KvCache, path: Path, stamp: str, device: torch.device
) -> tuple[DynamicCache, list[int]]:
    """Return a cache like that of `kv`, and tokens, that `write` wrote. Raises EngineError."""
    body = read_sealed(path)
    try:
        head = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])["__metadata__"]
        if head.get("stamp") != stamp:
            raise unusable(path, "it was written for another model")
        tensors, layers = load(body), json.loads(head["layers"])
    except (SafetensorError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise unusable(path, f"it is not of the form that is known ({error})") from error
    tokens = [int(token) for token in tensors["tokens"].tolist()]
    if len(tokens) > kv.context_tokens:
        room = f"the context has {kv.context_tokens}"
        raise unusable(path, f"it holds {len(tokens)} tokens and {room}")
    return _filled(kv.fresh(), layers, tensors, device), tokens


def _packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Describe what a layer holds as JSON; tensors go aside, under their names."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach()
        return {"tensor": name}
    if isinstance(value, dict):
        items = [[key, _packed(each, f"{name}.{key}", tensors)] for key, each in value.items()]
        return {"dict": items}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, _PLAIN):
        return {"value": value}
    raise EngineError(
        f"this model's context holds a {type(value).__name__} ({name}), which cannot be saved"
    )


def _unpacked(said: Any, tensors: dict[str, Tensor], device: torch.device) -> Any:
    """Return what `_packed` described, on the device that is computed on now."""
    ((kind, value),) = said.items()
    if kind == "tensor":
        return tensors[value].to(device)
    if kind == "dict":
        return {key: _unpacked(each, tensors, device) for key, each in value}
    if kind == "dtype":
        return getattr(torch, value)
    return device if kind == "device" else value


def _filled(
    cache: DynamicCache, layers: list[Any], tensors: dict[str, Tensor], device: torch.device
) -> DynamicCache:
    while len(cache.layers) < len(layers):
        cache.layers.append(cache.layer_class_to_replicate())
    for layer, said in zip(cache.layers, layers, strict=True):
        vars(layer).update(_unpacked(said, tensors, device))
    return cache
