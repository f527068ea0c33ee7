"""A model whose experts are served: what the engine steps, and what has to be closed after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from localmoe.backends.torch.server import ExpertServer
from localmoe.backends.torch.source import TorchSource
from localmoe.cache.expert_cache import ExpertCache
from localmoe.cache.profile import Profile
from localmoe.cache.slots import SlotPool
from localmoe.closing import Closing
from localmoe.weights.catalog import Catalog


class ServedModel(Closing):
    """Owns the model, the slots, the cache and the open files."""

    def __init__(
        self, model: PreTrainedModel, source: TorchSource, pool: SlotPool, server: ExpertServer
    ) -> None:
        self.model, self.server = model, server
        self._source, self.pool = source, pool
        self._profile: Profile | None = None
        kind = f"{source.catalog.architecture} {model.dtype}\n".encode()
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
        counts = zip(self.pool.limits, self.pool.classes, strict=True)
        if all(limit >= each.n_experts for limit, each in counts):
            rates = {m.layer: np.ones(m.n_experts) for m in self.catalog.layers}
            self.cache.warm_up(rates)
        elif profile:
            self.cache.warm_up(profile.read())

    def step(self, tokens: Sequence[int], cache: DynamicCache, wanted: int) -> Tensor:
        """Append tokens to a context; return the last `wanted` logits, float32 [wanted, V].

        Raises LocalMoeError, RuntimeError.
        """
        ids = torch.tensor([list(tokens)], dtype=torch.long)
        try:
            with torch.inference_mode():
                result: Any = self.model(
                    input_ids=ids,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=max(wanted, 1),
                )
                logits: Tensor = result.logits[0, len(result.logits[0]) - wanted :].float()
        finally:
            self.server.finish()
        return logits

    def close(self) -> None:
        """Free everything."""
        if self._profile:
            self._profile.add(self.cache.uses())
        self.server.cache.close()
        for module in self.model.modules():
            if hasattr(module, "localmoe"):
                del module.localmoe  # it looks into the slots
        self.pool.close()
        self._source.close()
