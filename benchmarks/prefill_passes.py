"""Claim: a long prefill chunk in passes beats the longest chunk that its slots can serve at once.

    python benchmarks/prefill_passes.py [--model FILE.gguf] [--slots 48] [--experts-used 1]

With few slots and experts_used 1 the synthetic model is like Llama 4: one large expert a layer and
token. The peer is localmoe itself with chunks of as many tokens as no layer can ask too much for,
the way it worked before it had passes. Both in turn, the same file, slots, tokens and threads; the
device is read directly, so the page cache helps neither.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from manifest import SCRATCH, entry_state, options, record
from synthetic import Shape, synthetic_model

from localmoe import Settings, load
from localmoe.bench.tokens import token_stream

Side = dict[str, Any]


def prefill(model: Path, settings: Settings, n_tokens: int) -> Side:
    """Load, read a prompt once to warm up, then read another one and say what it took."""
    with load(model, settings) as engine:
        tokens = token_stream(2 * n_tokens, engine.tokenizer.n_vocab)
        engine.decode(tokens[:n_tokens], "none")
        engine.truncate(0)
        before, began = engine.stats(), time.perf_counter()
        engine.decode(tokens[n_tokens:], "none")
        seconds = time.perf_counter() - began
        spent = engine.stats() - before
        return {
            "chunk_tokens": engine.plan.prefill_chunk_tokens,
            "seconds": seconds,
            "tokens_per_second": n_tokens / seconds,
            "read_bytes": spent.read_bytes,
            "stall_seconds": spent.stall_seconds,
            "split_layers": spent.split_layers,
            "split_seconds": spent.split_seconds,
        }


def main() -> None:
    parser = options(__doc__, rounds=3)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--slots", type=int, default=48)
    parser.add_argument("--experts-used", type=int, default=1)
    given = parser.parse_args()
    model = given.model or synthetic_model(SCRATCH / "synthetic.gguf", Shape())
    entry = entry_state()
    chunks = {"passes": given.tokens, "short chunks": given.slots // given.experts_used}
    rounds: dict[str, list[Side]] = {side: [] for side in chunks}
    for _ in range(given.rounds):
        for side, chunk_tokens in chunks.items():
            settings = Settings(
                slots=given.slots,
                experts_used=given.experts_used,
                context_tokens=given.tokens,
                prefill_chunk_tokens=chunk_tokens,
            )
            rounds[side].append(prefill(model, settings, given.tokens))
            print(side, rounds[side][-1], flush=True)
    medians = {
        side: statistics.median_low(r["tokens_per_second"] for r in found)
        for side, found in rounds.items()
    }
    ratio = medians["passes"] / medians["short chunks"]
    result = {
        "verdict": {"ratio": ratio},
        "slots": given.slots,
        "experts_used": given.experts_used,
        "tokens": given.tokens,
        "rounds": rounds,
    }
    record(given.data, f"prefill-passes-k{given.experts_used}", entry, result)
    print(f"ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
