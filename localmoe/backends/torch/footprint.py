"""What a model needs beside its weights, found out on torch's meta device: nothing is computed."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx.experimental._config
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, PreTrainedModel

from localmoe.backends.torch.kv_layer import RoomyLayer, new_cache
from localmoe.backends.torch.stripped import Stripped
from localmoe.errors import UnsupportedModelError

CHUNKS = (512, 256, 128, 64, 32, 16, 8, 1)
"""Lengths of prefill steps that are looked at."""
_SCRATCH_SHARE = 0.25
"""What kernels take for themselves, over what tensors take."""


@dataclass(frozen=True)
class Footprint:
    """What a step of so many tokens needs, in bytes. See `planning.request.ChunkFootprint`."""

    chunk_tokens: int
    kv_bytes: int
    compute_bytes: int


def footprints(
    model: PreTrainedModel, stripped: Stripped, context_tokens: int
) -> tuple[Footprint, ...]:
    """Return what steps need when the context is nearly full, the longest step first.

    The model is on the meta device, without experts. Raises UnsupportedModelError.
    """
    chunks = [chunk for chunk in CHUNKS if chunk <= context_tokens]
    cache = new_cache(model.config, context_tokens)
    with _experts_that_do_nothing(stripped):
        if context_tokens > chunks[0]:
            _step(model, cache, context_tokens - chunks[0])
        least = _peak_bytes(model, copy.deepcopy(cache), 1)
        most = _peak_bytes(model, cache, chunks[0])
    # Everything that a step makes has a row for each of its tokens.
    per_token = max(most - least, 0) / max(chunks[0] - 1, 1)
    kv_bytes = _kv_bytes(cache)
    return tuple(
        Footprint(chunk, kv_bytes, int(least + per_token * (chunk - 1))) for chunk in chunks
    )


def _kv_bytes(cache: DynamicCache) -> int:
    """Return what a cache takes; what grows by copying is there twice for a moment, by layers."""
    sizes = [sum(tensor.nbytes for tensor in _tensors(vars(layer))) for layer in cache.layers]
    copied = [
        size
        for layer, size in zip(cache.layers, sizes, strict=True)
        if type(layer) is not RoomyLayer
    ]
    return sum(sizes) + max(copied, default=0)


def _tensors(values: dict[Any, Any]) -> Iterator[Tensor]:
    for value in values.values():
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value)


def _peak_bytes(model: PreTrainedModel, cache: DynamicCache, tokens: int) -> int:
    """Return what a step takes beside the cache that it leaves, which is counted by itself."""
    held = [tensor for layer in cache.layers for tensor in _tensors(vars(layer))]
    with _Peak(held) as peak:
        before = sum(tensor.nbytes for tensor in held)
        del held
        _step(model, cache, tokens)
    beside = before + peak.most_bytes - _kv_bytes(cache)
    return int(max(0, beside) * (1 + _SCRATCH_SHARE))


def _step(model: PreTrainedModel, cache: DynamicCache, tokens: int) -> None:
    ids = torch.zeros((1, tokens), dtype=torch.long, device="meta")
    try:
        # Where it depends on values how many there are, all of them are taken to count.
        with (
            torch.inference_mode(),
            torch.fx.experimental._config.patch(meta_nonzero_assume_all_nonzero=True),  # type: ignore[attr-defined]
        ):
            model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    except Exception as error:
        raise UnsupportedModelError(
            f"what this model ({model.config.model_type}) needs cannot be found out without "
            f"computing: {str(error).strip()[:300] or type(error).__name__}"
        ) from error


class _Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that are made while it lasts, less those that go."""

    def __init__(self, held: Sequence[Tensor]) -> None:
        """`held` were made before and may go: some layers of a cache grow by copying."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.most_bytes = 0
        self._bytes = 0
        self._uses: dict[int, int] = {}
        for tensor in held:
            self._made(tensor)
        self._bytes = self.most_bytes = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(each, Tensor):
                self._made(each)
        return result

    def _made(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, nbytes = storage._cdata, storage.nbytes()
        if key not in self._uses:
            self._uses[key] = 0
            self._bytes += nbytes
            self.most_bytes = max(self.most_bytes, self._bytes)
        self._uses[key] += 1
        weakref.finalize(tensor, self._gone, key, nbytes)

    def _gone(self, key: int, nbytes: int) -> None:
        self._uses[key] -= 1
        if not self._uses[key]:
            del self._uses[key]
            self._bytes -= nbytes


class _Nothing:
    """Stands for the experts of a layer: their sum has the shape of what they are given."""

    def forward(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        return torch.empty_like(hidden)


@contextmanager
def _experts_that_do_nothing(stripped: Stripped) -> Iterator[None]:
    for one in stripped.modules:
        module: Any = one.module
        module.localmoe = _Nothing()
    try:
        yield
    finally:
        for one in stripped.modules:
            del one.module.localmoe
