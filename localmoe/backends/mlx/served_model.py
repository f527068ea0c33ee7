"""A model whose experts are served: what the engine steps, and what has to be closed after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from localmoe.backends.base import FloatArray
from localmoe.backends.mlx.kv_cache import PromptCache
from localmoe.backends.mlx.pressure import PressureWatch
from localmoe.backends.mlx.server import ExpertServer
from localmoe.backends.mlx.slot_arrays import SlotArrays
from localmoe.backends.mlx.source import MlxSource
from localmoe.cache.expert_cache import ExpertCache
from localmoe.cache.planes import PlanePool
from localmoe.cache.profile import Profile, first_rates
from localmoe.closing import Closing
from localmoe.weights.catalog import Catalog


class ServedModel(Closing):
    """Owns the model, the slots, the cache and the open files."""

    def __init__(
        self,
        model: nn.Module,
        source: MlxSource,
        slots: tuple[SlotArrays, PlanePool],
        server: ExpertServer,
    ) -> None:
        self.model, self.server = model, server
        self._source = source
        self._arrays, self.pool = slots
        self.watch: PressureWatch | None = None
        self._profile: Profile | None = None
        kind = f"{source.catalog.architecture} mlx\n".encode()
        self.stamp = source.catalog.resident_digest(kind).hex()
        """Tells whether a saved context is one of this model."""

    @property
    def catalog(self) -> Catalog:
        """Where the model's bytes lie."""
        return self._source.catalog

    @property
    def cache(self) -> ExpertCache:
        """The expert cache."""
        return self.server.cache

    def warm_up(self, profile: Profile | None) -> None:
        """Read experts into free slots while nobody asks: all, or those of earlier runs.

        What this run uses is added to the profile when it ends.
        """
        self._profile = profile
        rates = first_rates(self.pool, profile)
        if rates is not None:
            self.cache.warm_up(rates)

    def step(self, tokens: Sequence[int], kv: PromptCache, wanted: int) -> FloatArray:
        """Append tokens to a context; return the last `wanted` logits, float32 [wanted, V].

        Raises LocalMoeError; RuntimeError and ValueError where MLX cannot go on.
        """
        if self.watch:
            self.watch.look()
        self.server.begin(len(tokens))
        model: Any = self.model
        try:
            found = model(mx.array([list(tokens)]), cache=kv.layers)
            kv.tokens.extend(tokens)
            # What is not wanted is not computed: the output matrix alone may be a tenth of all.
            if wanted:
                rows = found[0, len(tokens) - wanted :].astype(mx.float32)
                mx.eval(rows, kv.arrays())
                self.server.count()
                return np.array(rows)
            mx.eval(kv.arrays())
            self.server.count()
            return np.empty((0, found.shape[-1]), np.float32)
        finally:
            self.server.finish()

    def close(self) -> None:
        """Free everything."""
        if self._profile:
            self._profile.add(self.cache.uses())
        self.server.cache.close()
        self.pool.close()
        self._arrays.close()
        self._source.close()
