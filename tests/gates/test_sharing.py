"""Fewer threads beside a busy neighbour change no bit.

G13  single tokens that are computed on one thread, because others use a core, give the logits of
     resident experts on all threads: also behind so many tokens that attention is shared out
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import localmoe
import zoo
from localmoe.backends.llama.engine import LlamaEngine
from localmoe.native.library import library

THREADS = 2
SHARED_FROM = 512
"""Positions from which llama.cpp gives each thread a part of the context, and adds the parts up."""
PROMPT, DECODED = SHARED_FROM + 8, 6
EARLY = 4
"""Single tokens right at the start, and half way."""
CONTEXT = 640
TOKENS = [int(t) for t in np.random.default_rng(13).integers(0, 256, PROMPT + DECODED)]


class BusyNeighbour:
    """What the engine asks about cores, with an answer that changes in mid-answer."""

    most = THREADS

    def __init__(self) -> None:
        self.n_threads, self.alone, self._looks = THREADS, True, 0

    def look(self) -> bool:
        self._looks += 1
        if self._looks == 2:
            self.n_threads, self.alone = 1, False
        return self._looks == 2


def logits_of(engine: LlamaEngine) -> list[bytes]:
    logits: list[bytes] = []
    position = 0
    for start, stop in ((0, EARLY), (300, 300 + EARLY), (PROMPT, PROMPT + DECODED)):
        if start > position:
            engine.decode(TOKENS[position:start], "none")
        logits += [engine.decode([token]).tobytes() for token in TOKENS[start:stop]]
        position = stop
    return logits


def load(path: Path, slots: int | None, threads: int = THREADS) -> LlamaEngine:
    settings = localmoe.Settings(
        slots=slots, threads=threads, prefill_chunk_tokens=128, context_tokens=CONTEXT
    )
    engine = localmoe.load(path, settings)
    assert isinstance(engine, LlamaEngine)
    return engine


@pytest.mark.skipif(library() is None, reason="nothing is compiled here")
@pytest.mark.parametrize("name", zoo.MODELS)
def test_g13_a_thread_fewer_gives_the_bits_of_all(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = zoo.write(tmp_path, name, context=CONTEXT)
    with load(path, None) as engine:
        wanted = logits_of(engine)
    with load(path, engine.catalog.token_demand) as engine:
        neighbour = BusyNeighbour()
        monkeypatch.setattr(engine, "_sharing", neighbour)
        found = logits_of(engine)
        assert neighbour.n_threads == 1
    assert found == wanted


def test_the_number_of_threads_matters_there(tmp_path: Path) -> None:
    """Else the gate above would hold without doing anything."""
    path = zoo.write(tmp_path, "qwen3moe", context=CONTEXT)
    with load(path, None) as engine:
        on_two = logits_of(engine)
    with load(path, None, threads=1) as engine:
        assert logits_of(engine) != on_two
