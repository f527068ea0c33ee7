"""The arrays in mlx-lm's caches, whatever their kind: looked at, and put in the place of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import CacheList


def leaves_of(cache: Any) -> list[Any]:
    """Return the caches that a cache is made of: itself, unless it is a list of some."""
    if type(cache) is CacheList:
        return [leaf for each in cache.caches for leaf in leaves_of(each)]
    return [cache]


def arrays_of(value: Any) -> Iterator[mx.array]:
    """Yield the arrays that a cache, or anything in one, holds, at any depth."""
    if isinstance(value, mx.array):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from arrays_of(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from arrays_of(each)
    elif hasattr(value, "__dict__"):
        yield from arrays_of(vars(value))


def with_arrays(value: Any, replace: Callable[[mx.array], mx.array]) -> Any:
    """Return a value with other arrays, in the order of `arrays_of`; objects are changed."""
    if isinstance(value, mx.array):
        return replace(value)
    if isinstance(value, dict):
        return {key: with_arrays(each, replace) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(with_arrays(each, replace) for each in value)
    if hasattr(value, "__dict__"):
        vars(value).update(with_arrays(vars(value), replace))
    return value
