"""Claim: with torch a context that grows in place is decoded faster than one that is copied.

    python benchmarks/torch_context.py [--rounds 3]

A small model with many keys (9 layers of 16 key heads of 64), all experts in slots. Two engines in
one process, one with localmoe's layers, one with transformers' own, which are copied with each
token. Both get the same tokens, in turn; their logits have to be equal.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np
from manifest import SCRATCH, Answer, entry_state, options, record
from torch_memory import SIZES, WRITE
from transformers import DynamicCache

from localmoe.backends.torch.kv_cache import KvCache
from localmoe.backends.torch.load import load
from localmoe.bench.tokens import token_stream
from localmoe.settings import Settings

SHAPE = {
    **SIZES,
    "num_experts": 16,
    "num_local_experts": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 16384,
    "layer_types": ["full_attention"] * SIZES["num_hidden_layers"],
}
CONTEXTS, TOKENS = (500, 2000, 8000), 16
SIDES = ("in place", "copied")


class CopiedContext(KvCache):
    """As transformers keeps it."""

    def fresh(self) -> DynamicCache:
        return DynamicCache(config=self._config)


def token_seconds(engine: Any, tokens: list[int]) -> tuple[list[float], Any]:
    """Decode tokens one by one; return what each took, and the last logits."""
    taken, logits = [], None
    for token in tokens:
        began = time.perf_counter()
        logits = engine.decode([token])
        taken.append(time.perf_counter() - began)
    return taken, logits


def measure(engines: dict[str, Any], rounds: int) -> list[Answer]:
    """Return a row for each length of context and side."""
    stream = token_stream(max(CONTEXTS) + TOKENS * rounds, SHAPE["vocab_size"])
    rows, done = [], 0
    for length in CONTEXTS:
        samples: dict[str, list[float]] = {side: [] for side in SIDES}
        for engine in engines.values():
            engine.decode(stream[done:length], "none")
        for number in range(rounds):
            start = length + number * TOKENS
            found = []
            for side, engine in engines.items():
                taken, logits = token_seconds(engine, stream[start : start + TOKENS])
                samples[side] += taken
                found.append(logits)
            if not np.array_equal(*found):
                raise SystemExit("the logits differ")
        done = length + rounds * TOKENS
        rows += [{"context": length, "side": side, "seconds": samples[side]} for side in SIDES]
    return rows


def main() -> None:
    given = options(__doc__, rounds=3).parse_args()
    entry, folder = entry_state(), SCRATCH / "torch-context"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        write = [sys.executable, "-c", WRITE, str(folder), json.dumps(SHAPE)]
        subprocess.run(write, check=True, capture_output=True)
        settings = Settings(memory_bytes=4 << 30, context_tokens=max(CONTEXTS) + 512)
        with load(folder, settings) as ours, load(folder, settings) as theirs:
            theirs._kv = CopiedContext(theirs._kv._config, settings.context_tokens)
            rows = measure(dict(zip(SIDES, (ours, theirs), strict=True)), given.rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for place, copied in zip(rows[::2], rows[1::2], strict=True):
        fast, slow = (statistics.median(row["seconds"]) for row in (place, copied))
        print(
            f"{place['context']} tokens: {fast * 1e3:.1f} ms in place, {slow * 1e3:.1f} copied: "
            f"{slow / fast:.2f} times as long"
        )
    record(given.data, "torch-context", entry, {"sizes": SHAPE, "rows": rows})


if __name__ == "__main__":
    main()
