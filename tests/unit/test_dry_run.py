"""The dry run's sizes are those of what llama.cpp then allocates."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from localmoe.backends.llama import log, parameters
from localmoe.backends.llama.bindings import L
from localmoe.backends.llama.dry_run import dry_run

CONTEXT, CHUNK = 4096, 8
BUFFER_SIZE = re.compile(r"\b(?:KV|RS|state) buffer size = +([\d.]+) MiB")

# One of each kind of memory: keys and values, windows, recurrent states, an index beside them,
# sparse attention, compressed keys.
MODELS = ("qwen3moe", "afmoe", "jamba", "qwen4exp", "glm-dsa", "minimax-m3", "deepseek4")


def allocated_mib(path: Path) -> list[float]:
    """Return the sizes of all buffers but those for computing and for logits."""
    model = parameters.open_model([str(path)])
    context = parameters.open_context(
        model, context_tokens=CONTEXT, chunk_tokens=CHUNK, threads=1, kv_type="f16"
    )
    lines = log.lines()
    L.llama_free(context)
    L.llama_model_free(model)
    return [float(match[1]) for line in lines if (match := BUFFER_SIZE.search(line))]


@pytest.mark.parametrize("name", MODELS)
def test_all_caches_and_states_are_counted(name: str, zoo_model: Callable[[str], Path]) -> None:
    path = zoo_model(name)
    run = dry_run([str(path)], context_tokens=CONTEXT, chunks=[CHUNK])
    buffers = allocated_mib(path)
    assert min(buffers) > 0.0
    # Buffers and caches are logged to a hundredth, and the least buffer is larger than that.
    assert run.footprints[0].kv_bytes / 2**20 == pytest.approx(sum(buffers), abs=0.009)
