"""What a model would be like on a machine: how much of it is in memory, and how fast it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from localmoe.planning.hit_rate import HitRate, resident_hit_rate
from localmoe.planning.pace import chunk_of, decode_seconds, prefill_seconds
from localmoe.planning.plan import MemoryPlan
from localmoe.planning.rates import Views
from localmoe.planning.token_work import TokenWork
from localmoe.settings import EngineName
from localmoe.weights.catalog import Catalog

HitsAt = Callable[[int], HitRate]
"""Of a number of slots, what is found in them."""
_SHORT_CONTEXT_TOKENS = 2048
"""The conversation that the expected speed is for."""


@dataclass(frozen=True)
class Span:
    """Tokens per second: what is expected, and between what it may lie."""

    low: float
    expected: float
    high: float


@dataclass(frozen=True)
class Situation:
    """A model, its plan, and a machine."""

    catalog: Catalog
    work: TokenWork
    plan: MemoryPlan
    views: Views
    hits_at: HitsAt
    engine: EngineName = "llama"

    @property
    def hits(self) -> HitRate:
        """What is found in the plan's slots."""
        return self.hits_at(self.plan.slots) if self.plan.streams else resident_hit_rate()

    @property
    def held_share(self) -> float:
        """The share of the routed experts that memory holds."""
        return self.plan.slots / self.plan.experts if self.plan.experts else 1.0

    @property
    def read_bytes_per_token(self) -> float:
        """What a token is expected to read."""
        return self.work.routed_nbytes * (1 - self.hits.expected)

    @property
    def read_bytes_per_second(self) -> float:
        """How fast that is expected to be read."""
        seconds = decode_seconds(self.work, self.hits.expected, 0.0, self.views[1]).reading
        return self.read_bytes_per_token / seconds if seconds else 0.0

    def decode(self) -> Span:
        """Return the tokens per second of an answer."""
        slow, expected, fast = self.views
        hits, kv = self.hits, self.plan.kv_bytes
        short = kv * min(1.0, _SHORT_CONTEXT_TOKENS / self.plan.context_tokens)
        return Span(
            1 / decode_seconds(self.work, hits.low, max(short, kv / 2), slow).slow,
            1 / decode_seconds(self.work, hits.expected, short, expected).expected,
            1 / decode_seconds(self.work, hits.high, 0.0, fast).fast,
        )

    def prefill(self) -> Span:
        """Return the tokens per second of a long prompt."""
        layer = self.catalog.layers[0] if self.catalog.layers else None
        lent = self.plan.lent_bytes / self.plan.slot_bytes if self.plan.slot_bytes else 0.0
        chunk = chunk_of(
            self.plan.prefill_chunk_tokens,
            layer.n_experts if layer else 0,
            layer.n_experts_used if layer else 0,
            self.catalog.expert_nbytes,
            self.held_share * (1 - lent) if self.plan.streams else 1.0,
        )
        slow, expected, fast = (prefill_seconds(self.work, chunk, rates) for rates in self.views)
        return Span(1 / slow.slow, 1 / expected.expected, 1 / fast.fast)

    def with_slot_bytes(self, slot_bytes: float) -> Situation:
        """Return the same with more or less memory for slots; all experts at most."""
        whole = self.catalog.expert_nbytes
        held = min(float(whole), max(0.0, slot_bytes))
        slots = int(self.plan.experts * held / whole)
        return replace(self, plan=replace(self.plan, slots=slots, slot_bytes=int(held)))

    def with_drives(self, count: float) -> Situation:
        """Return the same with the reads of so many drives."""
        slow, expected, fast = (rates.with_drive(count) for rates in self.views)
        return replace(self, views=(slow, expected, fast))
