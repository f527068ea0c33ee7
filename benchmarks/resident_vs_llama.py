"""Claim: with all experts in memory, localmoe decodes at 0.97 or more of plain llama.cpp's speed.

    python benchmarks/resident_vs_llama.py

The peer reads all weights into memory and keeps the file's layout, as localmoe does. Two models:
the synthetic one with 6 of its layers, and the demonstration model. Each is measured twice: the
peer with its own way of waiting for threads (it spins), and with the one that localmoe chooses.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from manifest import SCRATCH, Answer, bench_decode, entry_state, options, record
from synthetic import Shape, synthetic_model

from localmoe.demo.builder import demo_model

WANTED_RATIO = 0.97
LAYERS = 6
WAITING = {"peer's own": {}, "the same": {"GOMP_SPINCOUNT": "3000"}}


def main() -> None:
    parser = options(__doc__, rounds=7)
    parser.add_argument("--tokens", type=int, default=96)
    given = parser.parse_args()
    models = {
        "synthetic": synthetic_model(
            SCRATCH / f"synthetic-{LAYERS}-layers.gguf", Shape(layers=LAYERS)
        ),
        "demonstration": demo_model(SCRATCH),
    }
    entry = entry_state()
    result: Answer = {"verdict": {"ratio_wanted": WANTED_RATIO}}
    for name, model in models.items():
        for waiting, environment in WAITING.items():
            answer = measure(model, given.tokens, given.rounds, environment)
            result[f"{name}, waiting: {waiting}"] = answer
            result["verdict"][f"{name}, waiting: {waiting}"] = answer["ratio"]
            print(f"{name:14} waiting: {waiting:10} ratio {answer['ratio']:.3f}", flush=True)
    record(given.data, "resident-vs-llama", entry, result)


def measure(model: Path, tokens: int, rounds: int, environment: dict[str, str]) -> Answer:
    """Measure both sides in turn; add the ratio of each round, which shows the noise."""
    answer = bench_decode(
        model,
        *("--tokens", str(tokens), "--peer", "ram", "--rounds", str(rounds)),
        environment=environment,
    )
    if answer["extra"]["streams"]:
        raise SystemExit(f"{model.name} does not fit into memory here: nothing can be compared")
    pairs = zip(answer["extra"]["rounds"], answer["peer"]["rounds"], strict=True)
    answer["ratios"] = [a["tokens_per_second"] / b["tokens_per_second"] for a, b in pairs]
    answer["ratio_of_rounds"] = statistics.median(answer["ratios"])
    return answer


if __name__ == "__main__":
    main()
