"""What a model needs beside its weights, found out from graphs that are never computed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.cache import (
    ArraysCache,
    ChunkedKVCache,
    ConcatenateKVCache,
    KVCache,
    RotatingKVCache,
    make_prompt_cache,
)

from localmoe.backends.mlx.cache_arrays import arrays_of, leaves_of, with_arrays
from localmoe.backends.mlx.switches import Switch
from localmoe.cache.memory import round_up
from localmoe.errors import UnsupportedModelError

CHUNKS = (2048, 1024, 512, 256, 128, 64, 32, 16, 8, 1)
"""Lengths of prefill steps that are looked at."""
_SCRATCH_SHARE = 0.25
"""What kernels take for themselves, over what arrays take."""
_TRACED_TOKENS = 64
"""Of longer steps so many are looked at: recurrent layers are told token by token."""
_STEP_TOKENS = 256  # by which a KVCache grows
_KINDS = (ArraysCache, ChunkedKVCache, ConcatenateKVCache, KVCache, RotatingKVCache)
_WIDE_ARRAYS, _MOST_HEADS = 32, 128
"""More than there are at once of a layer's widest arrays, and than layers have heads."""
_VIEWS = frozenset(
    (
        *("AsStrided", "Broadcast", "BroadcastAxes", "Depends", "ExpandDims", "Flatten"),
        *("Reshape", "Slice", "SliceUpdate", "Split", "Squeeze", "StopGradient"),
        *("Transpose", "Unflatten", "View"),
    )
)
"""Operations whose result lies in the memory of what they are given."""


class IdleSwitch(nn.Module):  # type: ignore[misc]
    """Stands for experts where nothing is computed: the shape of what they give, and no more."""

    def __init__(self, switch: Switch) -> None:
        super().__init__()
        self._n_outputs = switch.n_outputs
        self.n_used = 0
        """How many experts each token was to use, when it was called last."""

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        """Return zeros, [..., K, D]."""
        self.n_used = indices.shape[-1]
        return mx.zeros((*indices.shape, self._n_outputs), x.dtype)


@dataclass(frozen=True)
class Footprint:
    """What a step of so many tokens needs, in bytes. See `planning.request.ChunkFootprint`."""

    chunk_tokens: int
    kv_bytes: int
    compute_bytes: int


def vocabulary(model: nn.Module) -> int:
    """Return how many logits a model gives for each token. Raises UnsupportedModelError."""
    return int(_call(model, make_prompt_cache(model), 1).shape[-1])


def footprints(model: nn.Module, context_tokens: int) -> tuple[Footprint, ...]:
    """Return what steps need when the context is nearly full, the longest step first.

    The model's switches are idle ones, and its parameters need not be evaluated. Raises
    UnsupportedModelError.
    """
    chunks = [chunk for chunk in CHUNKS if chunk < context_tokens] or [1]
    caches = full_caches(model, context_tokens)
    sizes = [sum(array.nbytes for array in arrays_of(cache)) for cache in caches]
    kv_bytes = sum(sizes) + max(sizes, default=0)  # a layer's is there twice while it grows
    least = _peak_bytes(model, context_tokens, 1) or _bound_bytes(model, context_tokens)
    looked_at = min(chunks[0], _TRACED_TOKENS)
    most = _peak_bytes(model, context_tokens, looked_at)
    # Everything that a step makes has a row for each of its tokens, or is there once.
    per_token = least if most is None else max(most - least, 0) / max(looked_at - 1, 1)
    return tuple(
        Footprint(chunk, kv_bytes, int(least + per_token * (chunk - 1))) for chunk in chunks
    )


def full_caches(model: nn.Module, context_tokens: int) -> list[Any]:
    """Return caches as they are when so many tokens were seen; nothing is computed."""
    caches: list[Any] = make_prompt_cache(model)
    _call(model, caches, 1)
    leaves = [leaf for cache in caches for leaf in leaves_of(cache)]
    if all(isinstance(leaf, _KINDS) for leaf in leaves):
        for leaf in leaves:
            _fill(leaf, context_tokens)
    else:
        _call(model, caches, context_tokens - 1)
    return caches


def _fill(cache: Any, n_tokens: int) -> None:
    """Make a cache as long as it is after so many tokens."""
    if isinstance(cache, ArraysCache):
        return  # as long as ever
    held = n_tokens
    if isinstance(cache, RotatingKVCache):
        held = min(n_tokens, cache.max_size)
        cache._idx = held
    elif isinstance(cache, ChunkedKVCache):
        held = min(n_tokens, cache.chunk_size)
        cache.start_position = n_tokens - held
    cache.offset = n_tokens
    length = round_up(held, _STEP_TOKENS) if isinstance(cache, KVCache) else held
    for name in ("keys", "values"):
        array = getattr(cache, name)
        setattr(cache, name, mx.zeros((*array.shape[:2], length, array.shape[3]), array.dtype))


def _call(model: Any, caches: list[Any], n_tokens: int) -> Any:
    try:
        return model(mx.zeros((1, n_tokens), mx.int32), cache=caches)
    except Exception as error:
        raise UnsupportedModelError(
            f"mlx-lm's model of this checkpoint cannot be called: {str(error).strip()[:300]}"
        ) from error


def _peak_bytes(model: nn.Module, context_tokens: int, n_tokens: int) -> int | None:
    """Return what a step holds at once beside weights and caches, at the end of a context.

    None: MLX cannot tell what the step consists of.
    """
    caches = full_caches(model, max(1, context_tokens - n_tokens))
    parameters = tree_flatten(model.parameters())
    held = list(arrays_of(caches))
    graph = _Graph()

    def step(tokens: mx.array, *inputs: mx.array) -> mx.array:
        weights = [(name, each) for (name, _), each in zip(parameters, inputs, strict=False)]
        model.update(tree_unflatten(weights))
        rest = iter(inputs[len(parameters) :])
        caches_now = with_arrays(caches, lambda _: next(rest))
        called: Any = model
        logits: mx.array = called(tokens, cache=caches_now)[:, -1:]
        return logits

    tokens = mx.zeros((1, n_tokens), mx.int32)
    try:
        mx.export_function(graph.note, step, tokens, *(a for _, a in parameters), *held)
    except (RuntimeError, ValueError):  # there is an operation that cannot be exported
        return None
    finally:
        model.update(tree_unflatten(parameters))
    return int(graph.peak_bytes() * (1 + _SCRATCH_SHARE))


def _bound_bytes(model: nn.Module, context_tokens: int) -> int:
    """Return more than a step of one token takes, where nothing better can be known."""
    shapes = [array.shape for _, array in tree_flatten(model.parameters()) if array.ndim == 2]
    lengths: list[int] = sorted({max(shape) for shape in shapes}, reverse=True)
    vocabulary_length, inner = lengths[0], lengths[min(1, len(lengths) - 1)]
    return 4 * (2 * vocabulary_length + _WIDE_ARRAYS * inner + _MOST_HEADS * context_tokens)


class _Graph:
    """The operations of a step in the order in which they are done, and what lives how long."""

    def __init__(self) -> None:
        self._root: dict[str, str] = {}  # of views: whose memory they lie in
        self._made: list[tuple[str, int]] = []  # what is made, and its bytes, in order
        self._last_use: dict[str, int] = {}
        self._outside: set[str] = set()

    def note(self, said: dict[str, Any]) -> None:
        """Learn what `mx.export_function` tells of a graph, piece by piece."""
        kind = said["type"]
        if kind == "inputs":
            self._outside.update(name for name, _, _ in said["inputs"])
        elif kind == "constants":
            self._outside.update(name for name, _ in said["constants"])
        elif kind == "primitive":
            self._note_operation(said)

    def _note_operation(self, said: dict[str, Any]) -> None:
        inputs = [self._root.get(name, name) for name, _, _ in said["inputs"]]
        now = len(self._made)
        for name in inputs:
            self._last_use[name] = now
        is_view = said["name"] in _VIEWS and inputs
        for name, shape, dtype in said["outputs"]:
            if is_view:
                self._root[name] = inputs[0]
            else:
                self._made.append((name, math.prod(shape) * dtype.size))

    def peak_bytes(self) -> int:
        """Return the most that is there at once, without inputs and without what stays."""
        ends: dict[int, list[int]] = {}
        live = most = 0
        for now, (name, nbytes) in enumerate(self._made):
            if name not in self._outside:
                live += nbytes
                ends.setdefault(max(self._last_use.get(name, now), now), []).append(nbytes)
            most = max(most, live)
            live -= sum(ends.pop(now, ()))
        return most
