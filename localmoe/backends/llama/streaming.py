"""All that turns a resident model into a streamed one, closed in the right order."""

from __future__ import annotations

from localmoe.backends.llama.callback import Callback
from localmoe.backends.llama.lending import Lender
from localmoe.cache.expert_cache import ExpertCache
from localmoe.cache.profile import Profile
from localmoe.cache.slots import SlotPool


class Streaming:
    """What a streamed model needs beside llama.cpp: slots, their cache, the hook, the lender."""

    def __init__(
        self, pool: SlotPool, cache: ExpertCache, callback: Callback, lender: Lender
    ) -> None:
        self.pool, self.cache, self.callback, self.lender = pool, cache, callback, lender
        self.profile: Profile | None = None
        """Where it is kept which experts were used, if it is."""

    def prepare(self, tokens: int) -> None:
        """Give memory to slots or to compute buffers, whichever steps of so many tokens need."""
        self.lender.prepare(tokens, self.callback.compute_buffer)

    def close(self) -> None:
        """End the reads, then free the slots."""
        self.callback.close()
        if self.profile:
            self.profile.add(self.cache.uses())
        self.cache.close()
        self.pool.close()
