"""Memory lent to long steps: computing in it, and giving it back, changes no bit.

G10  nothing in llama.cpp's compute buffer outlives a step: it may be given back between any two
     with another length
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import localmoe
import zoo
from localmoe.backends.llama import lending, planned
from localmoe.backends.llama.engine import LlamaEngine
from localmoe.planning.budget import SlotPlan, plan_fixed_slots
from localmoe.planning.loans import Loan
from localmoe.planning.request import Request

ZooModel = Callable[[str], Path]
CHUNK = 32
LENGTHS = (40, 1, 1, 5, 1, 20, 1, 1)
TOKENS = [int(t) for t in np.random.default_rng(3).integers(0, 256, sum(LENGTHS))]
POISON = 0xAB


def load(path: Path, slots: int | None) -> LlamaEngine:
    settings = localmoe.Settings(
        slots=slots, threads=1, prefill_chunk_tokens=CHUNK, context_tokens=128
    )
    engine = localmoe.load(path, settings)
    assert isinstance(engine, LlamaEngine)
    return engine


def logits_of(engine: LlamaEngine) -> bytes:
    engine.truncate(0)
    found, start = b"", 0
    for length in LENGTHS:
        found += engine.decode(TOKENS[start : start + length]).tobytes()
        start += length
    return found


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Fixed slots are lent; what is given back is overwritten. Returns how many bytes, each time.

    The buffers of such models are smaller than huge pages: really, nothing would be given back.
    """
    areas: list[int] = []

    def lend(request: Request, budget_bytes: int, slots: int) -> SlotPlan:
        found = plan_fixed_slots(request, budget_bytes, slots)
        fewer = tuple(max(1, count - 2) for count in found.counts)
        loans = (Loan(4, found.counts), Loan(8, found.counts), Loan(CHUNK, fewer))
        return replace(found, loans=loans)

    def overwrite(start: int, stop: int) -> None:
        ctypes.memset(start, POISON, stop - start)
        areas.append(stop - start)

    monkeypatch.setattr(planned, "plan_fixed_slots", lend)
    monkeypatch.setattr(lending, "release_pages", overwrite)
    return areas


@pytest.mark.parametrize("name", zoo.ARCHITECTURES)
def test_g10_a_compute_buffer_that_was_given_back_changes_nothing(
    name: str, zoo_model: ZooModel, poisoned: list[int]
) -> None:
    path = zoo_model(name)
    with load(path, None) as engine:
        wanted = logits_of(engine)
        slots = engine.catalog.n_experts_total // 2
    assert poisoned == []
    with load(path, slots) as engine:
        assert logits_of(engine) == wanted
        assert logits_of(engine) == wanted, "with a warm cache"
    assert len(poisoned) >= 6
    assert min(poisoned) > 0
