"""Feeds damaged copies of a model to the engine, each in a forked child, and reports how it ended.

Run as a program: MODEL SCRATCH SEED TRUNCATIONS FLIPS. Prints a JSON list of [kind, place, exit
status, last words]. The parent never starts llama.cpp's threads, so that forking it is safe.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from localmoe.backends.llama.load import load
from localmoe.errors import LocalMoeError
from localmoe.settings import Settings
from localmoe.weights.gguf_header import read_header

RAN, REFUSED, NOT_FINITE, UNEXPECTED = 0, 10, 11, 12
CPU_SECONDS = 30
Case = tuple[str, int, bytes]


def cases(data: bytes, header_nbytes: int, seed: int, counts: tuple[int, int]) -> Iterator[Case]:
    """Yield (kind, place, damaged file); half of the cuts are in the header."""
    rng = random.Random(seed)
    for number in range(counts[0]):
        at = rng.randrange(header_nbytes if number % 2 else len(data))
        yield "cut", at, data[:at]
    for _ in range(counts[1]):
        at = rng.randrange(header_nbytes)
        yield "flip", at, data[:at] + bytes((data[at] ^ rng.randrange(1, 256),)) + data[at + 1 :]


def use(path: Path) -> int:
    """Load the model with few slots, decode a few tokens, and return how that ended."""
    settings = Settings(
        memory_bytes=4 << 30, context_tokens=64, threads=1, slots=20, prefill_chunk_tokens=8
    )
    try:
        with load(path, settings) as engine:
            engine.tokenizer.encode("Hello, wörld!\n")
            logits = engine.decode([1, 2, 3, 4, 5], logits="all")
            return RAN if np.isfinite(logits).all() else NOT_FINITE
    except LocalMoeError as error:
        print(error, file=sys.stderr)
        return REFUSED
    except BaseException:
        traceback.print_exc()
        return UNEXPECTED


def in_child(path: Path, words: Path) -> tuple[int, str]:
    """Return the exit status (negative for a signal) and what the child said last."""
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(os.open(words, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
        os._exit(use(path))
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, words.read_text(errors="replace")[-400:]


def main() -> None:
    model, scratch = Path(sys.argv[1]), Path(sys.argv[2])
    seed, *counts = (int(argument) for argument in sys.argv[3:])
    data, header_nbytes = model.read_bytes(), read_header(model).data_offset
    outcomes = []
    shutil.copy(model, scratch / "whole.gguf")
    outcomes.append(["whole", 0, *in_child(scratch / "whole.gguf", scratch / "words")])
    for kind, at, damaged in cases(data, header_nbytes, seed, (counts[0], counts[1])):
        path = scratch / "damaged.gguf"
        path.write_bytes(damaged)
        outcomes.append([kind, at, *in_child(path, scratch / "words")])
        path.unlink()
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
