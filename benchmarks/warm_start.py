"""Claim: a second run of a model finds more experts in memory when it remembers the first.

    python benchmarks/warm_start.py [--model FILE.gguf] [--memory-mib 3072]

A first run writes the profile along one part of the token stream. Then runs with and without it
take turns along another part: a pause as of somebody who types, a short prompt, and some tokens.
Reads go past the page cache, which is told to forget the file before each run.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from manifest import SCRATCH, entry_state, options, record
from synthetic import Shape, synthetic_model

from localmoe import Settings, load
from localmoe.bench.tokens import token_stream

Run = dict[str, Any]
PROMPT_TOKENS = 8


def forget_pages(model: Path) -> None:
    """Drop the file from the page cache."""
    descriptor = os.open(model, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def run(model: Path, settings: Settings, part: int, n_tokens: int, idle: float) -> Run:
    """Load, wait for `idle` seconds as for somebody who types, prompt, decode."""
    forget_pages(model)
    began = time.perf_counter()
    with load(model, settings) as engine:
        loaded = time.perf_counter()
        time.sleep(idle)
        length = PROMPT_TOKENS + n_tokens
        tokens = token_stream((part + 1) * length, engine.tokenizer.n_vocab)[part * length :]
        prompted = time.perf_counter()
        engine.decode(tokens[:PROMPT_TOKENS])
        first = time.perf_counter()
        before, marks = engine.stats(), [first]
        for token in tokens[PROMPT_TOKENS:]:
            logits = engine.decode([token])
            marks.append(time.perf_counter())
        spent = engine.stats() - before
    return {
        "load_seconds": loaded - began,
        "prompt_seconds": first - prompted,
        "tokens_per_second": n_tokens / (marks[-1] - first),
        "hit_rate": spent.hit_rate,
        "read_bytes_per_token": spent.read_bytes / n_tokens,
        "token_seconds": np.diff(marks).round(4).tolist(),
        "logits": float(np.abs(logits).sum()),
    }


def main() -> None:
    parser = options(__doc__, rounds=3)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--memory-mib", type=int, default=3072)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--name", default="warm-start")
    parser.add_argument("--idle", type=float, default=1.5, help="seconds between load and prompt")
    given = parser.parse_args()
    model = given.model or synthetic_model(SCRATCH / "synthetic.gguf", Shape())
    entry = entry_state()
    runs: dict[str, list[Run]] = {"warm": [], "cold": []}
    with tempfile.TemporaryDirectory() as folder:
        cold = Settings(memory_bytes=given.memory_mib << 20, context_tokens=1024)
        warm = Settings(**{**vars(cold), "profile_dir": Path(folder)})
        run(model, warm, 0, given.tokens, 0)
        profile = {path: path.read_bytes() for path in Path(folder).iterdir()}
        for _ in range(given.rounds):
            for name, settings in (("cold", cold), ("warm", warm)):
                for path, data in profile.items():  # every round knows the first run alone
                    path.write_bytes(data)
                runs[name].append(run(model, settings, 1, given.tokens, given.idle))
                shown = {k: v for k, v in runs[name][-1].items() if k != "token_seconds"}
                print(name, shown, flush=True)
    medians = {
        name: {
            key: statistics.median(r[key] for r in found)
            for key in found[0]
            if key not in ("token_seconds", "logits")
        }
        for name, found in runs.items()
    }
    verdict = {
        "logits_equal": len({r["logits"] for found in runs.values() for r in found}) == 1,
        "speed_ratio": medians["warm"]["tokens_per_second"] / medians["cold"]["tokens_per_second"],
        "hit_rates": [medians[name]["hit_rate"] for name in ("cold", "warm")],
    }
    result = {
        "verdict": verdict,
        "memory_mib": given.memory_mib,
        "tokens": given.tokens,
        "prompt_tokens": PROMPT_TOKENS,
        "idle_seconds": given.idle,
        "profile_nbytes": sum(map(len, profile.values())),
        "medians": medians,
        "runs": runs,
    }
    record(given.data, given.name, entry, result)
    print(verdict)


if __name__ == "__main__":
    main()
