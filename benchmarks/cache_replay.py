"""Claim: `bench cache` replays over a million requests per second, ten million in a minute.

    python benchmarks/cache_replay.py [--requests 10000000]

A trace of so many requests (48 layers of 128 experts, 8 used, skewed) is written and replayed by
the command, in a process of its own: its time and its peak. Then the compiled replay and that
through the policies' own Python take turns on a piece of it: the outcomes must be equal.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from manifest import entry_state, options, record

from localmoe.cache.policies import Lru
from localmoe.lab.layout import shared_layout
from localmoe.lab.ranked_replay import ranks_of, replay_ranks
from localmoe.lab.replay import replay
from localmoe.prediction.trace import Trace, made_up_layer
from localmoe.prediction.trace_file import write_trace

LAYERS, EXPERTS, USED = 48, 128, 8
PIECE_TOKENS = 400


def made_trace(n_tokens: int) -> Trace:
    rng = np.random.default_rng(0)
    routing = np.empty((n_tokens, LAYERS, USED), np.int32)
    for start in range(0, n_tokens, 256):
        count = min(256, n_tokens - start)
        drawn = rng.random((count, LAYERS, EXPERTS)) * (1 + np.arange(EXPERTS) / 30)
        routing[start : start + count] = np.argpartition(drawn, USED, axis=2)[:, :, :USED]
    layers = tuple(made_up_layer(n, EXPERTS, USED, (2_650_000,)) for n in range(LAYERS))
    return Trace(tuple(range(LAYERS)), EXPERTS, routing, moe_layers=layers)


def run_command(path: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "localmoe", "bench", "cache", str(path), "--json"]
    began = time.perf_counter()
    done = subprocess.run(
        [*command, "--policies", "lru,lfu", "--sizes", "5%,10%,25%,50%"],
        capture_output=True,
        check=True,
    )
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    replays = sum(len(size["policies"]) for size in json.loads(done.stdout)["sizes"])
    return {"seconds": seconds, "peak_rss_bytes": peak, "replays": replays}


def main() -> None:
    parser = options(__doc__, rounds=3)
    parser.add_argument("--requests", type=int, default=10_000_000)
    given = parser.parse_args()
    entry = entry_state()
    trace = made_trace(-(-given.requests // (LAYERS * USED)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.moetrace"
        with path.open("wb") as file:
            write_trace(file, [trace])
        command = run_command(path)
    piece = Trace(trace.layers, EXPERTS, trace.routing[:PIECE_TOKENS])
    layout = shared_layout(piece, 1536)
    ranks = ranks_of("lru", piece, 0)
    assert ranks is not None
    replay_ranks(piece, layout, ranks)  # compiled by now
    speeds: dict[str, list[float]] = {"compiled": [], "python": []}
    equal = True
    for _ in range(given.rounds):
        outcomes = {}
        for name, run in (
            ("compiled", lambda: replay_ranks(piece, layout, ranks)),
            ("python", lambda: replay(piece, layout, Lru)),
        ):
            began = time.perf_counter()
            outcomes[name] = run()
            speeds[name].append(piece.routing.size / (time.perf_counter() - began))
        equal &= np.array_equal(outcomes["compiled"], outcomes["python"])
    medians = {name: statistics.median(found) for name, found in speeds.items()}
    result = {
        "requests": int(trace.routing.size),
        "command": command,
        "requests_per_second": speeds,
        "medians": medians,
        "ratio": medians["compiled"] / medians["python"],
        "outcomes_equal": equal,
    }
    record(given.data, "cache-replay", entry, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
