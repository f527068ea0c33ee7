"""How fast a machine reads and computes, as an estimate takes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from localmoe.planning.read_rates import ReadRates

PARTS = 3
"""Matrices of an expert, each of which is a read."""
_AT_ONCE = 4
"""Experts that are read at the same time, where that was not measured."""


@dataclass(frozen=True)
class Rates:
    """One view of a machine: what is likely, or the better or the worse end of it."""

    read_bytes_per_second: float
    """Experts from the drive, several at once."""
    memory_bytes_per_second: float
    """Weights of a type that is not in `decode`."""
    operations_per_second: float
    """Many tokens at once, with weights of a type that is not in `prefill`."""
    kv_bytes_per_second: float | None = None
    """Keys and values, as each query head goes through them; None: once, like weights."""
    reads: ReadRates | None = None
    """Experts by the size of a part and how many are missed at once; None: not measured."""
    read_latency_seconds: float = 100e-6
    """Where they were not measured."""
    layer_seconds: float = 0.0
    """What a layer of a token takes beside its weights."""
    streamed_layer_seconds: float = 0.0
    """What a layer takes more where its experts are streamed."""
    streamed_expert_seconds: float = 0.0
    """And for each expert that it uses."""
    missed_layer_seconds: float = 0.0
    """And more where some are missing, beside waiting: these are multiplied apart."""
    row_seconds: float = 0.0
    """What a row of a matrix takes beside its bytes."""
    decode: Mapping[str, float] = field(default_factory=dict)
    """Bytes of weights per second that one token is multiplied with, by ggml type."""
    prefill: Mapping[str, float] = field(default_factory=dict)
    """Operations per second with many tokens at once, by ggml type."""

    def read_seconds(self, expert_nbytes: float, missed: int) -> float:
        """Return how long reading so many experts of a layer takes."""
        if self.reads:
            return missed * expert_nbytes / self.reads.rate(expert_nbytes / PARTS, missed)
        # The parts of an expert follow each other.
        waits = PARTS * math.ceil(missed / _AT_ONCE) * self.read_latency_seconds
        return missed * expert_nbytes / self.read_bytes_per_second + waits

    def streamed_seconds(self, experts_used: int) -> float:
        """Return what a layer takes more where its experts are streamed and none is missing."""
        return self.streamed_layer_seconds + experts_used * self.streamed_expert_seconds

    def with_drive(self, factor: float) -> Rates:
        """Return the same with a drive that is faster or slower by this."""
        return replace(
            self,
            read_bytes_per_second=self.read_bytes_per_second * factor,
            reads=self.reads and self.reads.times(factor),
        )

    def kv_seconds(self, nbytes: float, queries_per_key: float) -> float:
        """Return how long looking at so much of the KV cache takes."""
        if self.kv_bytes_per_second is None:
            return nbytes / self.memory_bytes_per_second
        return nbytes * queries_per_key / self.kv_bytes_per_second

    def decode_seconds(self, nbytes: Mapping[str, int], rows: int) -> float:
        """Return how long one token's products with so many bytes of each type take."""
        rate = self.memory_bytes_per_second
        products = sum(count / self.decode.get(kind, rate) for kind, count in nbytes.items())
        return products + rows * self.row_seconds


Views = tuple[Rates, Rates, Rates]
"""The slow, the expected and the fast view of a machine."""
