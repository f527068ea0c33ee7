"""Slow reads that end in any order change no bit.

G11  a token's experts are multiplied as they come, and a long step's are read before it asks for
     them: whichever comes first, the logits are those of resident experts
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import localmoe
import zoo
from localmoe.backends.llama.arrivals import Arrivals
from localmoe.backends.llama.engine import LlamaEngine
from localmoe.cache import reader
from localmoe.cache.direct_file import DirectFile

ZooModel = Callable[[str], Path]
LENGTHS = (1, 1, 1, 20, 1, 1, 1)
TOKENS = [int(t) for t in np.random.default_rng(11).integers(0, 256, sum(LENGTHS))]
LATE_SECONDS = 0.001
"""Every other read or so takes this time more; a product takes less than a tenth of it."""


READ_AHEAD = ("qwen3moe", "gpt-oss", "afmoe", "deepseek4", "gemma4", "grok", "jamba")
"""Models with enough layers, and few enough experts, for a long step to read the next layer's."""


def load(path: Path, slots: int | None) -> LlamaEngine:
    settings = localmoe.Settings(slots=slots, threads=2, prefill_chunk_tokens=16, context_tokens=64)
    engine = localmoe.load(path, settings)
    assert isinstance(engine, LlamaEngine)
    return engine


def logits_of(engine: LlamaEngine) -> list[bytes]:
    """Return those of each call."""
    tokens = iter(TOKENS)
    steps = [[next(tokens) for _ in range(length)] for length in LENGTHS]
    return [engine.decode(step, "all").tobytes() for step in steps]


@pytest.fixture
def slow_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have workers do all reads, and sleep first."""
    read, chance = DirectFile.read, random.Random(11)

    def read_later(self: DirectFile, *place: Any) -> None:
        time.sleep(chance.choice((0.0, LATE_SECONDS)))
        read(self, *place)

    monkeypatch.setattr(reader, "open_ring", lambda _: None)
    monkeypatch.setattr(DirectFile, "read", read_later)


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """In how many groups the experts of each product came that was not computed at once."""
    counts: list[int] = []
    run = Arrivals.run

    def counted(
        self: Arrivals, node: int, slots: Sequence[int], coming: Iterable[Sequence[int]]
    ) -> None:
        def passed_on() -> Iterator[Sequence[int]]:
            counts.append(0)
            for group in coming:
                counts[-1] += 1
                yield group

        run(self, node, slots, passed_on())

    monkeypatch.setattr(Arrivals, "run", counted)
    return counts


@pytest.mark.usefixtures("slow_reads")
@pytest.mark.parametrize("name", zoo.MODELS)
def test_g11_experts_that_come_late_and_in_any_order_give_the_same_bits(
    name: str, zoo_model: ZooModel, groups: list[int]
) -> None:
    path = zoo_model(name)
    with load(path, None) as engine:
        wanted = logits_of(engine)
    assert groups == []
    with load(path, engine.catalog.token_demand) as engine:
        assert logits_of(engine) == wanted
    one_each = all(layer.n_experts_used == 1 for layer in engine.catalog.layers)
    assert max(groups) > 1 or one_each, "all experts came at once: this tests nothing"


@pytest.mark.usefixtures("slow_reads")
@pytest.mark.parametrize("name", READ_AHEAD)
def test_g11_experts_that_are_read_ahead_give_the_same_bits(name: str, zoo_model: ZooModel) -> None:
    path = zoo_model(name)
    with load(path, None) as engine:
        wanted = logits_of(engine)
    with load(path, engine.catalog.n_experts_total - 1) as engine:
        assert logits_of(engine) == wanted
        assert engine.cache
        assert engine.cache.stats().prefetched > 0, "nothing was: this tests nothing"
