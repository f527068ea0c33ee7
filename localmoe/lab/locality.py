"""What a trace itself looks like: how popular experts are, and how soon they are used again."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from localmoe.prediction.trace import Trace

Floats = npt.NDArray[np.float64]


def popularity(trace: Trace) -> Floats:
    """Return the share of tokens that use each expert, [L, E]."""
    shares: Floats = trace.chosen().mean(0)
    return shares


def reuse_gaps(trace: Trace) -> dict[str, float]:
    """Return what share of uses comes how many tokens after the last one in that layer.

    Gaps are counted in doublings; `first` is the share of first uses.
    """
    chosen = trace.chosen()
    n_tokens = len(chosen)
    last = np.full(chosen.shape[1:], -1)
    counts: dict[int, int] = {}
    first = 0
    for token in range(n_tokens):
        layer, expert = np.nonzero(chosen[token])
        gaps = token - last[layer, expert]
        known = last[layer, expert] >= 0
        first += int((~known).sum())
        bins = np.ceil(np.log2(gaps[known])).astype(int)
        for at, count in zip(*np.unique(bins, return_counts=True), strict=True):
            counts[int(at)] = counts.get(int(at), 0) + int(count)
        last[layer, expert] = token
    total = max(1, int(chosen.sum()))
    found = {_gap_name(at): counts.get(at, 0) / total for at in range(max(counts, default=0) + 1)}
    return {**found, "first": first / total}


def _gap_name(at: int) -> str:
    """Name the gaps of 2^(at-1) + 1 to 2^at tokens."""
    most, least = 1 << at, (1 << at >> 1) + 1
    return str(most) if most <= least else f"{least}-{most}"


def busiest_share(shares: Floats, part: float = 0.25) -> float:
    """Return what share of all uses the busiest part of each layer's experts gets."""
    in_order = np.sort(shares, axis=1)[:, ::-1]
    count = max(1, int(part * shares.shape[1]))
    return float(in_order[:, :count].sum() / shares.sum())
