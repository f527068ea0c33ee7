"""How far samples of one figure lie apart."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

_MOST = 0.5
_TENTHS = 10


def is_doubtful(samples: Sequence[float]) -> bool:
    """Whether the middle eight tenths of the samples span more than half of their median.

    The outermost do not count: a single interruption is no doubt.
    """
    if len(samples) < 2:
        return False
    tenths = statistics.quantiles(samples, n=_TENTHS, method="inclusive")
    return tenths[-1] - tenths[0] > _MOST * statistics.median(samples)
