"""How figures are written in tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def samples(values: Sequence[float], digits: int = 2) -> str:
    """Return a median and all it was taken from, as two cells."""
    return f"{statistics.median_low(values):.{digits}f} | {listed(values, digits)}"


def listed(values: Sequence[float], digits: int = 2) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)


def said(value: bool | None) -> str:
    return {True: "yes", False: "NO", None: "not measured"}[value]
