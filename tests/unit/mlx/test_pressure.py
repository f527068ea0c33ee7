"""Slots are given back when the system is short of memory, and taken again later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from localmoe.backends.mlx.engine import MlxEngine
from localmoe.backends.mlx.load import load
from localmoe.backends.mlx.pressure import Level, PressureWatch
from localmoe.settings import Settings

TOKENS = [(17 * place + 5) % 250 for place in range(48)]
SLOTS = 20
Folders = Callable[..., Path]


class System:
    """A system that is as short of memory as it is told to be, and its clock."""

    def __init__(self) -> None:
        self.level: Level = "normal"
        self.now = 1000.0

    def __call__(self) -> Level:
        return self.level

    def clock(self) -> float:
        return self.now


class Rig:
    """An engine that watches a system."""

    def __init__(self, folder: Path) -> None:
        self.system = System()
        settings = Settings(slots=SLOTS, context_tokens=256)
        self.engine = load(folder, settings, pressure=self.system)
        served = self.engine._open()
        self.watch = PressureWatch(served.cache, served.pool, self.system, self.system.clock)
        served.watch = self.watch
        self._token = 7

    @property
    def slots(self) -> int:
        return sum(self.engine.slot_pool.limits)

    def step(self, seconds: float, level: Level | None = None) -> int:
        """Let time go by, compute a token, and return how many slots there are."""
        self.system.now += seconds
        self.system.level = level or self.system.level
        self._token = int(self.engine.decode([self._token])[0].argmax())
        return self.slots

    def bytes_held(self) -> int:
        return self.engine._open()._arrays.nbytes


@pytest.fixture
def rig(folders: Folders) -> Iterator[Rig]:
    made = Rig(folders("qwen3_moe"))
    yield made
    made.engine.close()


def test_memory_is_given_back_and_taken_again(rig: Rig) -> None:
    whole = rig.bytes_held()
    assert rig.step(1) == SLOTS
    assert rig.step(1, "warning") == 15
    assert rig.bytes_held() == whole * 15 // 20
    assert rig.step(1) == 15  # it takes a while to show
    assert rig.step(6, "critical") == 7
    assert rig.step(1, "normal") == 7
    assert rig.step(50) == 7
    assert rig.step(20) == SLOTS
    assert rig.bytes_held() == whole


def test_a_token_keeps_its_slots(rig: Rig) -> None:
    for _ in range(8):
        rig.step(10, "critical")
    assert rig.slots == 6  # three layers, two experts each
    given_back = rig.watch.given_back
    rig.step(10)
    assert rig.watch.given_back == given_back


def test_it_waits_longer_where_it_was_not_calm_for_good(rig: Rig) -> None:
    rig.step(1, "warning")
    rig.step(1, "normal")
    assert rig.step(61) == SLOTS
    assert rig.step(1, "warning") == 15
    rig.step(1, "normal")
    assert rig.step(61) == 15
    assert rig.step(61) == SLOTS


def test_no_bit_changes(rig: Rig, folders: Folders) -> None:
    found = []
    for place, token in enumerate(TOKENS):
        rig.system.now += 7
        rig.system.level = ("normal", "warning", "critical", "normal")[place // 3 % 4]
        found.append(rig.engine.decode([token]))
    assert rig.watch.given_back > 3
    with load(folders("qwen3_moe"), Settings(slots=SLOTS, context_tokens=256)) as calm:
        expected = [calm.decode([token]) for token in TOKENS]
    assert np.array_equal(found, expected)


def test_an_engine_without_a_source_watches_nothing(folders: Folders) -> None:
    with load(folders("qwen3_moe"), Settings(slots=SLOTS, context_tokens=64)) as engine:
        assert isinstance(engine, MlxEngine)
        assert engine._open().watch is None
