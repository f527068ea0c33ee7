"""Keys and values that lie in memory for the whole context: nothing is copied as it grows."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """A layer that keeps all it has seen, with room for so many tokens.

    transformers' own grows by copying: what it has is there twice then, and the allocator is left
    with holes that are a little too small. Here `keys` and `values`, [1, heads, tokens, width], are
    views of the beginning of what there is room for.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values; return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self.keys = _extended(self.keys, keys, self.capacity)
        self.values = _extended(self.values, values, self.capacity)
        return self.keys, self.values


def held_values(layer: Any) -> dict[str, Any]:
    """Return what a layer of a cache holds, without how much there is room for."""
    return {name: value for name, value in vars(layer).items() if name != "capacity"}


def new_cache(config: PretrainedConfig, capacity: int) -> DynamicCache:
    """Return an empty cache for a model, with room for so many tokens."""
    cache = DynamicCache(config=config)
    for place, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[place] = RoomyLayer(capacity)
    return cache


def _extended(held: Tensor, more: Tensor, capacity: int) -> Tensor:
    """Return both, one after the other along the tokens; where there is room, in place."""
    count = held.shape[-2] if held.numel() else 0
    total = count + more.shape[-2]
    *outer, _, width = more.shape
    # The heads of a view lie as far apart as there is room for.
    room = held.stride(-3) // width if count else 0
    if total <= room:
        whole = held.as_strided((*outer, room, width), held.stride(), held.storage_offset())
    else:
        whole = more.new_empty((*outer, max(capacity, total), width))
        if count:
            whole[..., :count, :] = held
    whole[..., count:total, :] = more
    return whole[..., :total, :]
