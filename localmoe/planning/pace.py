"""From bytes and rates to seconds per token: the formulas behind every figure of a plan.

Decode, with R the bytes that are read, B what a token multiplies with in layer order:

    computing = weights / their rate + rows of matrices x what a row costs beside
                + KV cache x query heads per key head / its rate
                + layers x what a layer costs beside, more where experts are streamed, and
                more again where some of a layer are missing
    reading   = routed bytes x (1 - hit rate) / drive
    fast      = max(reading, computing)      everything overlaps
    expected  = layer by layer: before the router, then max(reading, experts that were found),
                then the experts that were read
    slow      = reading + computing          nothing overlaps

Prefill reads each expert that a chunk touches once, and computes meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from localmoe.planning.rates import Rates
from localmoe.planning.token_work import TokenWork


@dataclass(frozen=True)
class TokenSeconds:
    """What one token takes."""

    reading: float
    computing: float
    expected: float

    @property
    def fast(self) -> float:
        """Where all reading is hidden behind computing, or the other way round."""
        return max(self.reading, self.computing)

    @property
    def slow(self) -> float:
        """Where nothing is hidden."""
        return self.reading + self.computing


def decode_seconds(
    work: TokenWork, hit_rate: float, kv_nbytes: float, rates: Rates
) -> TokenSeconds:
    """Return what a token takes that finds this share of its experts in memory.

    `kv_nbytes` is how much of the KV cache it looks at.
    """
    before = work.layers * rates.layer_seconds
    before += rates.decode_seconds(work.resident, work.resident_rows)
    before += rates.kv_seconds(kv_nbytes, work.queries_per_key)
    experts = rates.decode_seconds(work.routed, work.routed_rows)
    computing = before + experts
    if not work.moe_layers or hit_rate >= 1:
        return TokenSeconds(0.0, computing, computing)
    streamed = work.moe_layers * rates.streamed_seconds(work.experts_used)
    apart = work.moe_layers * (1 - hit_rate**work.experts_used) * rates.missed_layer_seconds
    before, computing = before + streamed, computing + streamed + apart
    reading = sum(
        work.moe_layers * likely * _reading_seconds(work, missed, rates)
        for missed, likely in _misses(work.experts_used, 1 - hit_rate)
    )
    expected = before + apart + _layers_seconds(work, 1 - hit_rate, experts, rates)
    return TokenSeconds(reading, computing, max(expected, reading, computing))


def _layers_seconds(work: TokenWork, miss_rate: float, experts: float, rates: Rates) -> float:
    """Return what experts take in all layers.

    Those that are there are multiplied while the others are read; these come after. Misses are
    taken as independent of each other.
    """
    used, layers = work.experts_used, work.moe_layers
    per_layer = 0.0
    for missed, likely in _misses(used, miss_rate):
        reading = _reading_seconds(work, missed, rates)
        last = experts / layers * missed / used
        per_layer += likely * (max(reading, experts / layers - last) + last)
    return layers * per_layer


def _misses(used: int, miss_rate: float) -> Iterator[tuple[int, float]]:
    """Yield how many of a layer's experts may be missing, and how likely that is."""
    for missed in range(used + 1):
        ways = math.comb(used, missed)
        yield missed, ways * miss_rate**missed * (1 - miss_rate) ** (used - missed)


def _reading_seconds(work: TokenWork, missed: int, rates: Rates) -> float:
    """Return what reading so many experts of a layer at once takes."""
    if not missed:
        return 0.0
    nbytes = work.routed_nbytes / work.moe_layers / work.experts_used
    return rates.read_seconds(nbytes, missed)


@dataclass(frozen=True)
class Chunk:
    """A prefill chunk: its tokens, and of the routed experts how many bytes it has to read."""

    tokens: int
    read_nbytes: float


def chunk_of(tokens: int, n_experts: int, used: int, routed_nbytes: float, held: float) -> Chunk:
    """Return the chunk of so many tokens where memory holds this share of all experts.

    Tokens are taken to choose independently: a long chunk touches nearly all experts.
    """
    if not n_experts:
        return Chunk(tokens, 0.0)
    touched = 1 - (1 - used / n_experts) ** tokens
    return Chunk(tokens, routed_nbytes * touched * (1 - held))


def prefill_seconds(work: TokenWork, chunk: Chunk, rates: Rates) -> TokenSeconds:
    """Return what a token of a long prompt takes, read in such chunks."""
    computing = sum(
        work.operations(kind) / rates.prefill.get(kind, rates.operations_per_second)
        for kind in work.types
    )
    reading = chunk.read_nbytes / chunk.tokens / rates.read_bytes_per_second
    # The next layer is read ahead, but slots are few meanwhile: half of it overlaps.
    hidden = min(reading, computing) / 2
    return TokenSeconds(reading, computing, reading + computing - hidden)
