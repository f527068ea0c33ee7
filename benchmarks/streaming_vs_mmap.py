"""Claim: with 8.45 GB of model and 3 GiB of memory, localmoe is at least 25 times llama.cpp's mmap.

    python benchmarks/streaming_vs_mmap.py [--model FILE.gguf]

As root: both sides run under the same hard limit (benchmarks/membox). Without --model the synthetic
model is written to build/benchmarks first. Takes about two minutes per round.
"""

from __future__ import annotations

from pathlib import Path

import psutil
from manifest import SCRATCH, bench_decode, entry_state, options, record
from synthetic import Shape, synthetic_model

LIMIT_MIB = 3072
WANTED_RATIO = 25.0
RESIDENT_ROOM_BYTES = 2 << 30


def main() -> None:
    parser = options(__doc__, rounds=3)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--peer-tokens", type=int, default=8)
    given = parser.parse_args()
    model = given.model or synthetic_model(SCRATCH / "synthetic.gguf", Shape())
    entry = entry_state()
    tokens = ("--tokens", str(given.tokens))
    budget = ("--memory", f"{LIMIT_MIB}MiB")

    alone = bench_decode(model, *tokens, *budget, limit_mib=LIMIT_MIB)
    turns = bench_decode(
        model,
        *tokens,
        *budget,
        *("--peer", "mmap", "--peer-tokens", str(given.peer_tokens)),
        *("--rounds", str(given.rounds)),
        limit_mib=LIMIT_MIB,
    )
    resident = None
    if psutil.virtual_memory().available > model.stat().st_size + RESIDENT_ROOM_BYTES:
        resident = bench_decode(model, *tokens)
    verdict = {
        "peak_under_limit": alone["group_peak_mib"] < LIMIT_MIB,
        "logits_equal_peer": turns["peer"]["logits_equal"],
        "logits_equal_resident": resident and resident["logits_sha256"] == alone["logits_sha256"],
        "ratio": turns["ratio"],
        "ratio_wanted": WANTED_RATIO,
    }
    result = {"verdict": verdict, "alone": alone, "in_turn": turns, "resident": resident}
    record(given.data, "streaming-vs-mmap", entry, result)
    for name, value in verdict.items():
        print(f"{name:22} {value}")


if __name__ == "__main__":
    main()
