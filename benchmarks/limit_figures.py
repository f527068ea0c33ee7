"""From raw answers to fractions of the limit, and from those to a verdict. Measures nothing."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Answer = dict[str, Any]


@dataclass(frozen=True)
class Criterion:
    """One line of the verdict: a value and its bound."""

    name: str
    value: float | None
    bound: float
    at_most: bool = False

    @property
    def holds(self) -> bool:
        """Whether the value keeps to its bound; what was not measured does not."""
        if self.value is None:
            return False
        return self.value <= self.bound if self.at_most else self.value >= self.bound

    def to_json(self) -> Answer:
        wanted = f"{'<=' if self.at_most else '>='} {self.bound:.4g}"
        return {"value": self.value, "wanted": wanted, "holds": self.holds}


def decode_figures(streamed: Answer, resident: Answer, bandwidth: float) -> Answer:
    """Return the limit and the fraction of one streamed run, in one round.

    `resident` went along the same tokens and positions with all experts in memory; `bandwidth` in
    bytes per second is the device's, of the same round. `own_fraction` is what `bench decode` says
    by itself: it takes the last token again, with the hook, for computing, and its own reading of
    the device.
    """
    token_seconds = 1 / streamed["tokens_per_second"]
    read_seconds = streamed["bytes_read_per_token"] / bandwidth
    compute_seconds = 1 / resident["tokens_per_second"]
    limit_seconds = max(read_seconds, compute_seconds)
    return {
        "token_seconds": token_seconds,
        "read_seconds": read_seconds,
        "compute_seconds": compute_seconds,
        "own_compute_seconds": _inverse(streamed["resident_tokens_per_second"]),
        "stall_seconds": streamed["stall_seconds_per_token"],
        "bytes_read_per_token": streamed["bytes_read_per_token"],
        "hit_rate": streamed["hit_rate"],
        "bound_by": "reading" if read_seconds > compute_seconds else "computing",
        "fraction": limit_seconds / token_seconds,
        "own_fraction": streamed["fraction_of_limit"],
        # What a decoder would reach that reads and computes one after the other.
        "fraction_if_added": limit_seconds / (read_seconds + compute_seconds),
    }


def prefill_figures(streamed: Answer, residents: Sequence[Answer], bandwidth: float) -> Answer:
    """Return the limit and the fraction of one streamed prompt; the fastest resident run counts."""
    read_seconds = streamed["read_bytes"] / bandwidth
    compute_seconds = min(resident["seconds"] for resident in residents)
    return {
        "seconds": streamed["seconds"],
        "read_seconds": read_seconds,
        "compute_seconds": compute_seconds,
        "stall_seconds": streamed["stall_seconds"],
        "bound_by": "reading" if read_seconds > compute_seconds else "computing",
        "fraction": max(read_seconds, compute_seconds) / streamed["seconds"],
    }


def peer_ratio(peer: Answer, prefill: Answer) -> Answer:
    """Return by how many times the peer was slower; `at_least` where a deadline ended it.

    `prefill` is what `prefill_figures` returned. `possible_ratio` is that of an engine that takes
    no longer than the limit.
    """
    at_least = "seconds" not in peer
    if at_least:
        loaded = (
            peer["chunks"][0]["process_seconds"] if peer["chunks"] else peer["deadline_seconds"]
        )
    seconds = peer["deadline_seconds"] - loaded if at_least else peer["seconds"]
    possible = max(prefill["read_seconds"], prefill["compute_seconds"])
    return {
        "ratio": seconds / prefill["seconds"],
        "at_least": at_least,
        "possible_ratio": seconds / possible,
    }


def start_figures(answer: Answer) -> Answer:
    """Return a cold start's time and its bound: 1.5 times reading the resident weights, and 1 s."""
    resident_bytes = answer["extra"]["model"]["resident_bytes"]
    bound = 1.5 * resident_bytes / answer["device_bytes_per_second"] + 1.0
    seconds = answer["extra"]["first_token_seconds"]
    return {
        "first_token_seconds": seconds,
        "bound_seconds": bound,
        "load_seconds": answer["load_seconds"],
        "resident_bytes": resident_bytes,
        "device_bytes_per_second": answer["device_bytes_per_second"],
        "share_of_bound": seconds / bound,
    }


def breakdown(where: Answer, compute_seconds: float) -> Answer:
    """Return the parts of a token's time in seconds: they add up to it.

    `rest` is what no clock saw: stopping and starting the graph, the readers' use of the cores,
    and caches of the processor that others have filled.
    """
    parts = {
        "compute": compute_seconds,
        "stall": where["stall_seconds"],
        "callback": where["own_seconds"],
    }
    return {**parts, "rest": where["token_seconds"] - sum(parts.values())}


def spread(values: Sequence[float]) -> Answer:
    """Return a median, the extremes and all values."""
    return {
        "median": statistics.median(values),
        "least": min(values),
        "most": max(values),
        "values": list(values),
    }


def _inverse(value: float | None) -> float | None:
    return 1 / value if value else None
