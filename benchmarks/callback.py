"""Claim: a compiled callback decodes faster than the same one in Python, and gives the same logits.

    python benchmarks/callback.py [--model FILE.gguf] [--rounds 3]

Decodes the synthetic model at 3 and 6 GiB with either, all in turn, under a hard limit as root.
"""

from __future__ import annotations

import os
import statistics
from pathlib import Path

from manifest import SCRATCH, bench_decode, entry_state, options, record
from synthetic import Shape, synthetic_model

MEMORY_MIB = (3072, 6144)
SIDES = {"compiled": "--compiled", "Python": "--no-compiled"}


def main() -> None:
    parser = options(__doc__, rounds=3)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--tokens", type=int, default=48)
    given = parser.parse_args()
    model = given.model or synthetic_model(SCRATCH / "synthetic.gguf", Shape())
    entry = entry_state()
    samples: dict[str, dict[str, list[float]]] = {
        str(mib): {side: [] for side in SIDES} for mib in MEMORY_MIB
    }
    hashes: dict[int, set[str]] = {mib: set() for mib in MEMORY_MIB}
    for _ in range(given.rounds):
        for mib in MEMORY_MIB:
            for side, flag in SIDES.items():
                answer = bench_decode(
                    model,
                    *("--memory", f"{mib}MiB", "--tokens", str(given.tokens), flag),
                    *("--prompt-tokens", "64"),
                    limit_mib=mib if os.geteuid() == 0 else None,
                )
                if answer["extra"]["callback"] != side:
                    raise SystemExit(f"{side} was wanted, and {answer['extra']['callback']} used")
                samples[str(mib)][side].append(answer["tokens_per_second"])
                hashes[mib].add(answer["logits_sha256"])
    medians = {
        mib: {side: statistics.median(values) for side, values in sides.items()}
        for mib, sides in samples.items()
    }
    result = {
        "tokens_per_second": medians,
        "samples": samples,
        "logits_equal": all(len(found) == 1 for found in hashes.values()),
        "tokens": given.tokens,
        "last_answer": answer,
    }
    record(given.data, "callback", entry, result)
    for mib, sides in medians.items():
        print(f"{mib} MiB: {sides['compiled']:.2f} tok/s, in Python {sides['Python']:.2f}")


if __name__ == "__main__":
    main()
