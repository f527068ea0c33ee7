"""What a model keeps of its context: mlx-lm's prompt caches, cut back, remembered and replaced."""

from __future__ import annotations

import copy
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.models.cache import (
    ChunkedKVCache,
    ConcatenateKVCache,
    KVCache,
    RotatingKVCache,
    make_prompt_cache,
)

from localmoe.backends.mlx.cache_arrays import arrays_of, leaves_of

_MARKS = 2


class PromptCache:
    """The caches of one stream of tokens; `tokens` are those that they have seen."""

    def __init__(self, model: nn.Module, context_tokens: int) -> None:
        self._model: nn.Module | None = model
        self.layers: list[Any] = make_prompt_cache(model)
        self.tokens: list[int] = []
        self._marks: dict[int, list[Any]] = {}
        self.can_rewind = all(_keeps_all(layer, context_tokens) for layer in self.layers)
        """Whether every layer keeps all that fits into the context: any end can be cut off."""

    @property
    def position(self) -> int:
        """How many tokens they have seen."""
        return len(self.tokens)

    def arrays(self) -> list[mx.array]:
        """Return all arrays that they hold."""
        return list(arrays_of(self.layers))

    def mark(self) -> None:
        """Remember this position: what cannot be cut back is copied. The last two are kept."""
        if self.can_rewind or not self.position:
            return
        self._marks.pop(self.position, None)
        self._marks[self.position] = [
            None if _is_whole(layer) else _copied(layer) for layer in self.layers
        ]
        while len(self._marks) > _MARKS:
            del self._marks[next(iter(self._marks))]

    def truncate(self, n: int) -> int:
        """Keep the first n tokens, or fewer where that cannot be; return how many are left."""
        return self.position if n >= self.position else self.rollback(n)

    def rollback(self, n: int) -> int:
        """Undo what came after n tokens, half of a step included; see `truncate`."""
        if n > 0 and n not in self._marks and not all(map(_can_be_cut, self.layers)):
            n = max((at for at in self._marks if at <= n), default=0)
        self._marks = {at: mark for at, mark in self._marks.items() if at <= n}
        if n == 0:
            assert self._model is not None
            self.layers = make_prompt_cache(self._model)
        else:
            kept = self._marks.get(n) or [None] * len(self.layers)
            for place, (layer, copied) in enumerate(zip(self.layers, kept, strict=True)):
                if copied is not None:
                    self.layers[place] = _copied(copied)
                else:
                    _cut(layer, n)
        del self.tokens[n:]
        return n

    def fresh(self) -> list[Any]:
        """Return empty caches of the kinds that the model has."""
        assert self._model is not None
        return list(make_prompt_cache(self._model))

    def replace(self, layers: list[Any], tokens: list[int]) -> None:
        """Take other caches in place of these; marks are forgotten."""
        self.layers, self.tokens = layers, tokens
        self._marks.clear()

    def free(self) -> None:
        """Let all memory go."""
        self.replace([], self.tokens)
        self._model = None


def _keeps_all(layer: Any, context_tokens: int) -> bool:
    """Whether a cache loses nothing before the context is full."""
    for part in leaves_of(layer):
        if type(part) is RotatingKVCache:
            if part.max_size < context_tokens:
                return False
        elif type(part) is ChunkedKVCache:
            if part.chunk_size < context_tokens:
                return False
        elif not _is_whole(part):
            return False
    return True


def _is_whole(layer: Any) -> bool:
    """Whether a cache has all that it has seen, always."""
    return all(type(part) in (KVCache, ConcatenateKVCache) for part in leaves_of(layer))


def _can_be_cut(layer: Any) -> bool:
    """Whether a cache has lost nothing so far."""
    for part in leaves_of(layer):
        if type(part) is RotatingKVCache:
            if not part.is_trimmable():
                return False
        elif type(part) is ChunkedKVCache:
            if part.start_position:
                return False
        elif not _is_whole(part):
            return False
    return True


def _cut(layer: Any, n: int) -> None:
    for part in leaves_of(layer):
        if part.offset > n:
            part.trim(part.offset - n)


def _copied(layer: Any) -> Any:
    """Return a cache that does not change when this one is used."""
    found = copy.deepcopy(layer)
    mx.eval(list(arrays_of(found)))
    return found
