"""How many of a token's experts are found in memory: from a recording, or what is safe to say."""

from __future__ import annotations

from dataclasses import dataclass

REPEATED_SHARE = 0.39
"""Of a token's experts so many were those of the token before, in published measurements of
trained models: 35 to 43 %."""


@dataclass(frozen=True)
class HitRate:
    """Shares of requests, from 0 to 1."""

    low: float
    expected: float
    high: float
    source: str
    """Where they come from, in a sentence."""


def resident_hit_rate() -> HitRate:
    """Return that of a model whose experts are all in memory."""
    return HitRate(1.0, 1.0, 1.0, "all experts are in memory")


def default_hit_rate(share: float) -> HitRate:
    """Return what may be expected of a model of which nothing was recorded.

    `share` of its experts are in memory. Low is chance, as if routing had no pattern. High counts
    that a token uses some experts of the one before.
    """
    high = REPEATED_SHARE + (1 - REPEATED_SHARE) * share
    return HitRate(
        share,
        (share + high) / 2,
        high,
        f"nothing was recorded of this model: from chance ({share:.0%} of its experts are in "
        f"memory) to {REPEATED_SHARE:.0%} of a token's experts being those of the token before, as "
        "measured of trained models; --trace gives its own",
    )


def recorded_hit_rate(hit_rate: float, tokens: int, name: str) -> HitRate:
    """Return what replaying a recording of this model gave."""
    source = f"replayed from {name}: {tokens:,} tokens, with the engine's own policy"
    return HitRate(hit_rate, hit_rate, hit_rate, source)
