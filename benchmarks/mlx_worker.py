"""Plain mlx-lm, stepped as localmoe's MLX engine is, and what a process has taken and read so far.

    echo '{"folder": "...", "tokens": 32, "prompt_tokens": 16}' | python benchmarks/mlx_worker.py

measures plain mlx-lm's speed on a checkpoint in a process of its own: the peer of `bench decode`,
forced along the same tokens.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import psutil
from manifest import Answer
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from localmoe.backends.mlx.cache_arrays import arrays_of
from localmoe.bench.forced import force
from localmoe.bench.tokens import token_stream


class Plain:
    """mlx-lm's own model and caches, all weights in memory."""

    def __init__(self, folder: Path) -> None:
        self._model, config = load_model(folder)
        self._caches = make_prompt_cache(self._model)
        self.n_vocab = int(config["vocab_size"])

    def decode(self, tokens: Sequence[int]) -> Any:
        """Append tokens; return the last one's logits, float32 [1, V]."""
        if len(tokens) > 1:  # a prompt's last token is a step of its own
            self._model(mx.array([list(tokens[:-1])]), cache=self._caches)
            mx.eval(list(arrays_of(self._caches)))
        found = self._model(mx.array([[tokens[-1]]]), cache=self._caches)
        rows = found[0, -1:].astype(mx.float32)
        mx.eval(rows, list(arrays_of(self._caches)))
        return np.array(rows)


def taken() -> Answer:
    """Return what this process holds, and what it has read since it was started; bytes."""
    process = psutil.Process()
    # macOS has no such counter for a process.
    read = process.io_counters().read_chars if hasattr(process, "io_counters") else None
    return {"rss_bytes": process.memory_info().rss, "read_bytes": read}


def main() -> None:
    """Measure plain mlx-lm; print one line of JSON."""
    request = json.loads(sys.stdin.read())
    began = time.perf_counter()
    plain = Plain(Path(request["folder"]))
    load_seconds = time.perf_counter() - began
    prompt, count = request["prompt_tokens"], request["tokens"]
    tokens = token_stream(prompt + count, plain.n_vocab)
    plain.decode(tokens[:prompt])
    forced = force(plain.decode, tokens[prompt:])
    answer = {
        "tokens_per_second": forced.tokens_per_second,
        "token_seconds": forced.token_seconds,
        "logits_sha256": forced.logits_sha256[count],
        "load_seconds": load_seconds,
        "mlx_peak_bytes": mx.get_peak_memory(),
        **taken(),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
