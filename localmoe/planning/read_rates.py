"""How fast a drive reads, by the size of reads and how many of them are under way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

_ENOUGH = 0.95
"""A depth that reaches this share of the best is as good as it."""


@dataclass(frozen=True)
class ReadPoint:
    """Direct reads of one size, so many at once, at random places."""

    nbytes: int
    depth: int
    bytes_per_second: float


@dataclass(frozen=True)
class ReadRates:
    """What was measured of a drive: at least one point."""

    points: tuple[ReadPoint, ...]

    def rate(self, nbytes: float, depth: float | None = None) -> float:
        """Return the bytes per second of reads of this size.

        Between sizes and depths that were measured it is interpolated. Beyond them it stays, but
        for reads that are smaller: these take as long as the smallest. Without a depth the best
        one counts.
        """
        by_depth: dict[int, dict[int, float]] = {}
        for point in self.points:
            by_depth.setdefault(point.depth, {})[point.nbytes] = point.bytes_per_second
        rates = {each: _of_size(sizes, nbytes) for each, sizes in by_depth.items()}
        return max(rates.values()) if depth is None else _between(rates, depth)

    def best_depth(self, nbytes: float) -> int:
        """Return the fewest reads at once that are nearly as fast as any."""
        depths = sorted({point.depth for point in self.points})
        rates = {depth: self.rate(nbytes, depth) for depth in depths}
        enough = max(rates.values()) * _ENOUGH
        return next(depth for depth in depths if rates[depth] >= enough)

    def times(self, factor: float) -> ReadRates:
        """Return a drive that is faster or slower by this."""
        points = (
            replace(point, bytes_per_second=point.bytes_per_second * factor)
            for point in self.points
        )
        return ReadRates(tuple(points))


def _of_size(rates: Mapping[int, float], nbytes: float) -> float:
    least = min(rates)
    return rates[least] * nbytes / least if nbytes < least else _between(rates, nbytes)


def _between(rates: Mapping[int, float], at: float) -> float:
    """Return the rate at a size or a depth: between two that were measured, in the logarithm."""
    known = sorted(rates)
    for low, high in zip(known, known[1:], strict=False):
        if low < at <= high:
            share = math.log(at / low) / math.log(high / low)
            return float(rates[low] * (rates[high] / rates[low]) ** share)
    return rates[known[0] if at <= known[0] else known[-1]]
