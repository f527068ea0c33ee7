"""Claim: evicting what is expected last reads less than evicting what was used longest ago.

    python benchmarks/eviction.py [--model FILE.gguf] [--slots 936]

Both policies run in one process, each with its own engine and so many slots, and take turns along
the same tokens, a block at a time; the logits must be equal. Reads go past the page cache.
"""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

import numpy as np
from manifest import SCRATCH, entry_state, options, record
from synthetic import Shape, synthetic_model

from localmoe import Settings, load
from localmoe.bench.tokens import token_stream
from localmoe.settings import PolicyName

Block = dict[str, float]
BLOCK_TOKENS = 16


def decode(engine: Any, tokens: list[int]) -> tuple[Block, Any]:
    """Decode tokens one by one; return what it took, and the last logits."""
    before, began = engine.stats(), time.perf_counter()
    for token in tokens:
        logits = engine.decode([token])
    seconds = time.perf_counter() - began
    spent = engine.stats() - before
    block = {
        "tokens_per_second": len(tokens) / seconds,
        "hit_rate": spent.hit_rate,
        "read_bytes_per_token": spent.read_bytes / len(tokens),
        "stall_seconds_per_token": spent.stall_seconds / len(tokens),
    }
    return block, logits


def main() -> None:
    parser = options(__doc__, rounds=6)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--slots", type=int, default=936)
    parser.add_argument("--warm-up", type=int, default=64, help="tokens before the first round")
    parser.add_argument("--experts-used", type=int)
    parser.add_argument("--name", default="eviction")
    given = parser.parse_args()
    model = given.model or synthetic_model(SCRATCH / "synthetic.gguf", Shape())
    entry = entry_state()
    names = get_args(PolicyName)
    blocks: dict[str, list[Block]] = {name: [] for name in names}
    equal = True
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(
                load(
                    model,
                    Settings(
                        slots=given.slots,
                        context_tokens=1024,
                        experts_used=given.experts_used,
                        policy=name,
                    ),
                )
            )
            for name in names
        }
        n_vocab = engines[names[0]].tokenizer.n_vocab
        tokens = token_stream(given.warm_up + given.rounds * BLOCK_TOKENS, n_vocab)
        for engine in engines.values():
            for token in tokens[: given.warm_up]:
                engine.decode([token])
        for number in range(given.rounds):
            start = given.warm_up + number * BLOCK_TOKENS
            order = names if number % 2 else names[::-1]
            last = {}
            for name in order:
                piece = tokens[start : start + BLOCK_TOKENS]
                block, last[name] = decode(engines[name], piece)
                blocks[name].append(block)
                print(name, block, flush=True)
            equal &= all(np.array_equal(last[names[0]], last[name]) for name in names)
    medians = {
        name: {key: statistics.median(b[key] for b in found) for key in found[0]}
        for name, found in blocks.items()
    }
    verdict = {
        "logits_equal": equal,
        "speed_ratio": medians["next-use"]["tokens_per_second"]
        / medians["lru"]["tokens_per_second"],
        "read_ratio": sum(b["read_bytes_per_token"] for b in blocks["next-use"])
        / sum(b["read_bytes_per_token"] for b in blocks["lru"]),
    }
    result = {
        "verdict": verdict,
        "slots": given.slots,
        "experts_used": given.experts_used,
        "warm_up_tokens": given.warm_up,
        "block_tokens": BLOCK_TOKENS,
        "medians": medians,
        "blocks": blocks,
    }
    record(given.data, given.name, entry, result)
    print(verdict, medians)


if __name__ == "__main__":
    main()
