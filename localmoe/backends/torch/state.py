"""Saved contexts: the tensors of a cache in a safetensors file, sealed with a checksum."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from localmoe.backends.torch.kv_cache import KvCache
from localmoe.errors import EngineError
from localmoe.replacing import replaced_file

_DIGEST_NBYTES = 32
_PLAIN = (bool, int, float, str, type(None))


def write(kv: KvCache, path: Path, stamp: str) -> None:
    """Write a context, whole or not at all. Raises EngineError."""
    tensors: dict[str, Tensor] = {"tokens": torch.tensor(kv.tokens, dtype=torch.int64)}
    layers = [
        _packed(vars(layer), f"{place}", tensors) for place, layer in enumerate(kv.cache.layers)
    ]
    head = {"stamp": stamp, "layers": json.dumps(layers)}
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, head)
    try:
        with replaced_file(path) as file:
            file.write(data)
            file.write(hashlib.sha256(data).digest())
    except OSError as error:
        raise EngineError(f"could not write the state to {path}: {error.strerror}") from error


def read(path: Path, model: PreTrainedModel, stamp: str, capacity: int) -> tuple[Any, list[int]]:
    """Return the cache and the tokens of a context that `write` wrote. Raises EngineError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EngineError(
            f"{path} is not a usable state of this model: {error.strerror}"
        ) from error
    reason, found = _checked(data, stamp)
    if found is not None:
        tensors, layers = found
        tokens = [int(token) for token in tensors["tokens"].tolist()]
        if len(tokens) <= capacity:
            return _cache(model, layers, tensors), tokens
        reason = f"it holds {len(tokens)} tokens and the context has {capacity}"
    raise EngineError(f"{path} is not a usable state of this model: {reason}")


def _checked(data: bytes, stamp: str) -> tuple[str, tuple[dict[str, Tensor], list[Any]] | None]:
    """Return why a file cannot be used, or its tensors and what is said of them."""
    body, digest = data[:-_DIGEST_NBYTES], data[-_DIGEST_NBYTES:]
    if len(data) <= _DIGEST_NBYTES + 8:
        return "it is too short", None
    if hashlib.sha256(body).digest() != digest:
        return "it is damaged or cut off (wrong checksum)", None
    try:
        head = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])["__metadata__"]
        if head.get("stamp") != stamp:
            return "it was written for another model", None
        return "", (load(body), json.loads(head["layers"]))
    except (SafetensorError, ValueError, KeyError, AttributeError, TypeError) as error:
        return f"it is not of the form that is known ({error})", None


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


def _cache(model: PreTrainedModel, layers: list[Any], tensors: dict[str, Tensor]) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    while len(cache.layers) < len(layers):
        cache.layers.append(cache.layer_class_to_replicate())
    for layer, said in zip(cache.layers, layers, strict=True):
        vars(layer).update(_unpacked(said, tensors, model.device))
    return cache
