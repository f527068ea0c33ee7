"""Claim: some thousand turns of spinning are nearly as fast as many, and survive a neighbour.

    python benchmarks/spin.py [--model FILE.gguf] [--memory 3GiB]

Decodes with several values of GOMP_SPINCOUNT, each with and without another process that keeps one
core busy, all in turn. The reason for the value in localmoe/backends/llama/bindings.py
(docs/decisions/0003).
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from manifest import SCRATCH, bench_decode, entry_state, options, record
from synthetic import Shape, synthetic_model

SPIN_COUNTS = (0, 3000, 20000, 300000)
"""The last is libgomp's default."""


@contextlib.contextmanager
def busy_neighbour(wanted: bool) -> Iterator[None]:
    """Keep one core busy meanwhile."""
    if not wanted:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = options(__doc__, rounds=3)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--memory", default="3GiB")
    parser.add_argument("--tokens", type=int, default=32)
    given = parser.parse_args()
    model = given.model or synthetic_model(SCRATCH / "synthetic.gguf", Shape())
    entry = entry_state()
    samples: dict[str, dict[str, list[float]]] = {
        str(count): {"quiet": [], "neighbour": []} for count in SPIN_COUNTS
    }
    for _ in range(given.rounds):
        for count in SPIN_COUNTS:
            for state in ("quiet", "neighbour"):
                with busy_neighbour(state == "neighbour"):
                    answer = bench_decode(
                        model,
                        *("--memory", given.memory, "--tokens", str(given.tokens)),
                        environment={"GOMP_SPINCOUNT": str(count)},
                    )
                samples[str(count)][state].append(answer["tokens_per_second"])
    medians = {
        count: {state: statistics.median_low(values) for state, values in states.items()}
        for count, states in samples.items()
    }
    asked = {"memory": given.memory, "tokens": given.tokens, "last_answer": answer}
    result = {"tokens_per_second": medians, "samples": samples, **asked}
    record(given.data, "spin", entry, result)
    for count, states in medians.items():
        print(f"{count:>7} turns: {states['quiet']:6.2f} tok/s, {states['neighbour']:6.2f} beside")


if __name__ == "__main__":
    main()
