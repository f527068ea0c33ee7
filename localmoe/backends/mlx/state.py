"""Saved contexts: what mlx-lm's caches hold, in a safetensors file sealed with a checksum."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from localmoe.backends.mlx.cache_arrays import leaves_of
from localmoe.backends.mlx.kv_cache import PromptCache
from localmoe.backends.sealed_state import read_sealed, unusable, write_sealed
from localmoe.errors import EngineError

_BODY = "state.safetensors"
_STEP_NBYTES = 16 << 20
_PLAIN = (bool, int, float, str, type(None))


def write(kv: PromptCache, path: Path, stamp: str) -> None:
    """Write a context, whole or not at all. Raises EngineError."""
    arrays = {"tokens": mx.array(np.array(kv.tokens, np.int64))}
    said = [_packed(vars(leaf), f"{n}", arrays) for n, leaf in enumerate(_leaves(kv.layers))]
    head = {"stamp": stamp, "kinds": _kinds(kv.layers), "caches": json.dumps(said)}
    try:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            body = Path(folder) / _BODY
            mx.save_safetensors(str(body), arrays, head)
            write_sealed(path, _pieces(body))
    except OSError as error:
        raise EngineError(f"could not write the state to {path}: {error.strerror}") from error
    except RuntimeError as error:
        raise EngineError(f"could not write the state to {path}: {error}") from error


def read(kv: PromptCache, path: Path, stamp: str, capacity: int) -> tuple[list[Any], list[int]]:
    """Return caches like those of `kv`, and tokens, that `write` wrote. Raises EngineError."""
    body = read_sealed(path)
    try:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / _BODY
            copy.write_bytes(body)
            loaded: Any = mx.load(str(copy), return_metadata=True)
            mx.eval(loaded[0])
    except OSError as error:
        raise unusable(path, error.strerror or error) from error
    except RuntimeError as error:
        raise unusable(path, f"it is not of the form that is known ({error})") from error
    arrays, head = loaded
    layers = kv.fresh()
    if head.get("stamp") != stamp or head.get("kinds") != _kinds(layers):
        raise unusable(path, "it was written for another model")
    tokens = [int(token) for token in arrays["tokens"].tolist()]
    if len(tokens) > capacity:
        raise unusable(path, f"it holds {len(tokens)} tokens and the context has {capacity}")
    for leaf, said in zip(_leaves(layers), json.loads(head["caches"]), strict=True):
        vars(leaf).update(_unpacked(said, arrays))
    return layers, tokens


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_STEP_NBYTES):
            yield piece


def _packed(value: Any, name: str, arrays: dict[str, mx.array]) -> Any:
    """Describe what a cache holds as JSON; arrays go aside, under their names."""
    if isinstance(value, mx.array):
        arrays[name] = value
        return {"array": name}
    if isinstance(value, dict):
        return {"dict": {k: _packed(each, f"{name}.{k}", arrays) for k, each in value.items()}}
    if isinstance(value, list | tuple):
        items = [_packed(each, f"{name}.{n}", arrays) for n, each in enumerate(value)]
        return {type(value).__name__: items}
    if isinstance(value, _PLAIN):
        return {"value": value}
    raise EngineError(
        f"this model's context holds a {type(value).__name__} ({name}), which cannot be saved"
    )


def _unpacked(said: Any, arrays: dict[str, mx.array]) -> Any:
    ((kind, value),) = said.items()
    if kind == "array":
        return arrays[value]
    if kind == "dict":
        return {key: _unpacked(each, arrays) for key, each in value.items()}
    if kind in ("list", "tuple"):
        items = [_unpacked(each, arrays) for each in value]
        return items if kind == "list" else tuple(items)
    return value


def _leaves(layers: list[Any]) -> list[Any]:
    return [leaf for layer in layers for leaf in leaves_of(layer)]


def _kinds(layers: list[Any]) -> str:
    return " ".join(type(leaf).__name__ for leaf in _leaves(layers))
