"""What a model keeps of its context: transformers' cache, cut back, remembered and saved."""

from __future__ import annotations

import copy
from typing import Any

from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicIndexedLayer

from localmoe.backends.torch.kv_layer import RoomyLayer, new_cache

_MARKS = 2


class KvCache:
    """The cache of one stream of tokens; `tokens` are those that it has seen."""

    def __init__(self, config: PretrainedConfig, context_tokens: int) -> None:
        self._config, self.context_tokens = config, context_tokens
        self.cache = self.fresh()
        self.tokens: list[int] = []
        self._marks: dict[int, list[Any]] = {}

    @property
    def position(self) -> int:
        """How many tokens it has seen."""
        return len(self.tokens)

    @property
    def can_rewind(self) -> bool:
        """Whether every layer keeps all that it has seen, so that any end can be cut off."""
        return all(_is_whole(layer) for layer in self.cache.layers)

    def mark(self) -> None:
        """Remember this position: what cannot be cut back is copied. The last two are kept."""
        if self.can_rewind or not self.position:
            return
        self._marks.pop(self.position, None)
        self._marks[self.position] = [
            None if _is_whole(layer) else copy.deepcopy(layer) for layer in self.cache.layers
        ]
        while len(self._marks) > _MARKS:
            del self._marks[next(iter(self._marks))]

    def truncate(self, n: int) -> int:
        """Keep the first n tokens, or fewer where that cannot be; return how many are left."""
        return self.position if n >= self.position else self.rollback(n)

    def rollback(self, n: int) -> int:
        """Undo what came after n tokens, half of a step included; see `truncate`."""
        if n > 0 and not self.can_rewind:
            n = max((at for at in self._marks if at <= n), default=0)
        self._marks = {at: mark for at, mark in self._marks.items() if at <= n}
        if n == 0:
            self.cache = self.fresh()
        else:
            self._cut(n)
        del self.tokens[n:]
        return n

    def fresh(self) -> DynamicCache:
        """Return an empty cache of the kinds that the model has."""
        return new_cache(self._config, self.context_tokens)

    def replace(self, cache: DynamicCache, tokens: list[int]) -> None:
        """Take another cache in place of this one; marks are forgotten."""
        self.cache, self.tokens = cache, tokens
        self._marks.clear()

    def free(self) -> None:
        """Let all memory go."""
        self.replace(self.fresh(), self.tokens)

    def _cut(self, n: int) -> None:
        kept = self._marks.get(n) or [None] * len(self.cache.layers)
        for place, (layer, copied) in enumerate(zip(self.cache.layers, kept, strict=True)):
            if copied is not None:
                self.cache.layers[place] = copy.deepcopy(copied)
            elif (held := layer.get_seq_length()) > n:
                layer.crop(n - held)


def _is_whole(layer: Any) -> bool:
    """Whether a layer has all that it has seen."""
    return type(layer) in (RoomyLayer, DynamicIndexedLayer)
