"""Memory that expert slots lend to long steps.

A step of many tokens needs large compute buffers, and nothing in them outlives it. So the same
memory is computed in while a prompt is read, and holds experts while single tokens are decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

_SHORT_TOKENS = 32
"""Steps of up to so many tokens borrow nothing: their buffers are always there."""
_SPREAD = 4
"""A short step's data may lie scattered, like that of the longest one: it touches more pages."""


class StepFootprint(Protocol):
    """What an engine needs to compute one step of so many tokens."""

    @property
    def chunk_tokens(self) -> int: ...  # noqa: D102
    @property
    def compute_bytes(self) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class Tier:
    """What computing takes in a step of up to `tokens` tokens. Bytes."""

    tokens: int
    compute_bytes: int


@dataclass(frozen=True)
class Loan:
    """How many slots of each size class there are during a step of up to `tokens` tokens."""

    tokens: int
    counts: tuple[int, ...]


def tiers(footprints: Sequence[StepFootprint], longest: StepFootprint) -> list[Tier]:
    """Return what steps take where buffers were laid out for the longest: shortest steps first."""
    largest = longest.compute_bytes
    shorter = [
        Tier(f.chunk_tokens, min(largest, _SPREAD * f.compute_bytes))
        for f in footprints
        if _SHORT_TOKENS <= f.chunk_tokens < longest.chunk_tokens
    ]
    return [*sorted(shorter, key=lambda tier: tier.tokens), Tier(longest.chunk_tokens, largest)]
