"""Claim: host memory need not give up what the GPU's memory holds, unless it is the smaller of two.

    python benchmarks/tiers.py TRACE...

Replays recorded routing through two levels of slots, a device's over host memory's, and counts what
passes between them and what is read from the drive, per token:

    inclusive   what the device holds may be in host memory, too; host memory is asked for what the
                device lacks, so that what is hot on the device grows old in host memory
    refreshed   the same, but host memory is told of everything that is used
    exclusive   an expert is in one of the two: what the device evicts is copied back
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from manifest import DATA, Answer, entry_state, record

from localmoe.prediction.trace import Trace
from localmoe.prediction.trace_reader import read_trace

SHARES = ((0.1, 0.2), (0.1, 0.4), (0.25, 0.25), (0.25, 0.5), (0.25, 0.75), (0.5, 0.25), (0.5, 0.4))
"""Of all experts: slots on the device, slots in host memory."""
Key = tuple[int, int]


class Counts(NamedTuple):
    """Per token, in experts."""

    up: float
    down: float
    read: float


class Lru(OrderedDict[Key, None]):
    """The least recently used first."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def use(self, key: Key) -> bool:
        """Return whether a key is there; it is the most recent one then."""
        if key not in self:
            return False
        self.move_to_end(key)
        return True

    def put(self, key: Key) -> Key | None:
        """Put a key in; return who had to go."""
        self[key] = None
        return self.popitem(last=False)[0] if len(self) > self.size else None


def replay(trace: Trace, kind: str, above: int, below: int, warm: int) -> Counts:
    """Count along a trace, from token `warm` on."""
    device, host = Lru(above), Lru(below)
    up = down = read = 0
    layers, used = trace.routing.shape[1:]
    for number, expert in enumerate(trace.routing.reshape(-1).tolist()):
        if number == warm * layers * used:
            up = down = read = 0
        key = number // used % layers, expert
        if device.use(key):
            if kind == "refreshed":
                host.use(key)
            continue
        up += 1
        is_here = host.use(key)
        read += not is_here
        victim = device.put(key)
        if kind == "exclusive":
            host.pop(key, None)
            if victim:
                down += 1
                host.put(victim)
        elif not is_here:
            host.put(key)
    n_tokens = trace.n_tokens - warm
    return Counts(up / n_tokens, down / n_tokens, read / n_tokens)


def rows(name: str, trace: Trace) -> Iterable[Answer]:
    """Yield a row for each pair of sizes and each way."""
    layers, used = trace.routing.shape[1:]
    total = layers * trace.n_experts
    for near, far in SHARES:
        above, below = max(int(total * near), layers * used), int(total * far)
        for kind in ("inclusive", "refreshed", "exclusive"):
            counts = replay(trace, kind, above, below, trace.n_tokens // 4)
            shown = ", ".join(f"{n} {v:.2f}" for n, v in counts._asdict().items())
            print(f"{name}: {near:.0%} + {far:.0%} {kind}: {shown} of {layers * used}", flush=True)
            yield {"trace": name, "near": near, "far": far, "kind": kind, **counts._asdict()}


def main() -> None:
    """Replay and record."""
    entry, found = entry_state(), []
    for path in map(Path, sys.argv[1:]):
        found += rows(path.name, read_trace(path))
    record(DATA, "tiers", entry, {"rows": found})


if __name__ == "__main__":
    main()
