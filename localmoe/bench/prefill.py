"""The prefill benchmark of one loaded model: how fast it reads a prompt."""

from __future__ import annotations

import time
from dataclasses import asdict

from localmoe.backends.llama.load import load
from localmoe.bench.decode import Report, device_speed
from localmoe.bench.forced import sha256_of
from localmoe.bench.request import PrefillRequest
from localmoe.bench.tokens import token_stream
from localmoe.settings import Progress


def measure_prefill(request: PrefillRequest, progress: Progress | None = None) -> Report:
    """Load the model, read one prompt of the fixed stream, then the device alone.

    Nothing is decoded before the prompt: slots that are still to be touched count. Raises
    LocalMoeError.
    """
    with load(request.model, request.settings, progress) as engine:
        tokens = token_stream(request.prompt_tokens, engine.tokenizer.n_vocab)
        began = time.perf_counter()
        logits = engine.decode(tokens)
        seconds = time.perf_counter() - began
        spent = engine.stats()
        device = device_speed(engine, request.settings, request.device_seconds)
        return {
            "seconds": seconds,
            "tokens": request.prompt_tokens,
            "tokens_per_second": request.prompt_tokens / seconds,
            "read_bytes": spent.read_bytes,
            "hits": spent.hits,
            "misses": spent.misses,
            "stall_seconds": spent.stall_seconds,
            "split_layers": spent.split_layers,
            "split_seconds": spent.split_seconds,
            "device_bytes_per_second": device.bytes_per_second if device else None,
            "load_seconds": engine.load_seconds,
            "streams": engine.plan.streams,
            "plan": asdict(engine.plan),
            "logits_sha256": sha256_of(logits),
        }
