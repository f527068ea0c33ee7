"""A model whose experts are served: what the engine steps, and what has to be closed after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from localmoe.backends.torch.levels import Levels
from localmoe.backends.torch.server import ExpertServer
from localmoe.backends.torch.source import TorchSource
from localmoe.cache.expert_cache import ExpertCache
from localmoe.cache.profile import Profile, first_rates
from localmoe.closing import Closing
from localmoe.errors import InterruptedDecodeError
from localmoe.settings import Progress
from localmoe.weights.catalog import Catalog


class ServedModel(Closing):
    """Owns the model, the slots, the cache and the open files."""

    def __init__(
        self, model: PreTrainedModel, source: TorchSource, levels: Levels, server: ExpertServer
    ) -> None:
        self.model, self.server, self.levels = model, server, levels
        self._source = source
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

    def warm_up(self, profile: Profile | None, progress: Progress | None = None) -> None:
        """Have experts in free slots before anybody asks: all, or those of earlier runs.

        What this run uses is added to the profile when it ends. Raises ExpertReadError.
        """
        self._profile = profile
        rates = first_rates(self.levels.slots, profile)
        if rates is not None:
            self.levels.warm_up(rates, progress)
            self.server.tables = self.levels.tables()

    def step(self, tokens: Sequence[int], cache: DynamicCache, wanted: int) -> Tensor:
        """Append tokens to a context; return the last `wanted` logits, float32 [wanted, V].

        Raises LocalMoeError, RuntimeError.
        """
        if self.server.interrupted:
            raise InterruptedDecodeError("the decode was interrupted")
        ids = torch.tensor([list(tokens)], dtype=torch.long, device=self.model.device)
        try:
            with torch.inference_mode():
                result: Any = self.model(
                    input_ids=ids,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=max(wanted, 1),
                )
                logits: Tensor = result.logits[0, len(result.logits[0]) - wanted :].float().cpu()
        finally:
            self.server.finish()
        return logits

    def close(self) -> None:
        """Free everything."""
        if self._profile:
            self._profile.add(self.cache.uses())
        for module in self.model.modules():
            if hasattr(module, "localmoe"):
                del module.localmoe  # it looks into the slots
        self.levels.close()
        self._source.close()
