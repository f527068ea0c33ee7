"""MLX computes later than it is called: slots are not overwritten before that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from localmoe.backends.mlx.engine import MlxEngine
from localmoe.backends.mlx.load import load
from localmoe.backends.mlx.server import ExpertServer
from localmoe.backends.mlx.switches import Switch
from localmoe.settings import Settings

Folders = Callable[..., Path]
X = mx.random.normal((1, 1, 64), key=mx.random.key(5))


@pytest.fixture
def engine(folders: Folders) -> Iterator[MlxEngine]:
    """An engine with just enough slots for one layer of one token."""
    with load(folders("qwen3_moe"), Settings(slots=2, context_tokens=64)) as made:
        yield made


def switches(engine: MlxEngine) -> list[Switch]:
    return list(engine._open()._source.switches.values())


def both(engine: MlxEngine, server: ExpertServer) -> tuple[mx.array, mx.array]:
    """Call two layers of which neither depends on the other; nothing is computed in between."""
    first, second = switches(engine)[:2]
    results = []
    for switch, ids in ((first, [0, 1]), (second, [2, 3])):
        table = np.zeros(8, np.uint32)
        results.append(server.serve(switch, table, X, mx.array([[ids]])))
    return results[0], results[1]


def alone(engine: MlxEngine, layer: int, ids: list[int]) -> mx.array:
    server = ExpertServer(engine.cache)
    result = server.serve(switches(engine)[layer], np.zeros(8, np.uint32), X, mx.array([[ids]]))
    server.finish()
    return result


def test_what_was_called_first_is_computed_from_its_own_experts(engine: MlxEngine) -> None:
    server = ExpertServer(engine.cache)
    first, second = both(engine, server)
    server.finish()
    found = np.array(first), np.array(second)
    assert np.array_equal(found[0], alone(engine, 0, [0, 1]))
    assert np.array_equal(found[1], alone(engine, 1, [2, 3]))


def test_without_the_guard_it_would_be_wrong(engine: MlxEngine) -> None:
    """The hazard is real: a product that is computed late multiplies what lies there by then."""

    def only_indices(*arrays: Any) -> None:
        mx.eval(*arrays[:1])

    server = ExpertServer(engine.cache, evaluate=only_indices)
    first, _ = both(engine, server)
    server.finish()
    late = np.array(first)
    assert not np.array_equal(late, alone(engine, 0, [0, 1]))


def test_experts_stay_held_until_their_result_is_there(engine: MlxEngine) -> None:
    evaluated: list[int] = []

    def evaluate(*arrays: Any) -> None:
        evaluated.append(len(arrays))
        mx.eval(*arrays)

    server = ExpertServer(engine.cache, evaluate=evaluate)
    both(engine, server)
    assert evaluated == [1, 2]  # the second layer's indices, and the first one's result
    server.finish()
    assert evaluated == [1, 2, 1]


def test_slots_are_read_into_in_place(engine: MlxEngine) -> None:
    """No copy of a plane is made: its address is the same, and what lies there is computed with."""
    switch = switches(engine)[0]
    module: Any = switch.module
    before = alone(engine, 0, [0, 1])
    layer = engine.catalog.layers[0]
    for index, array in enumerate(switch.arrays):
        child, _, name = array.name.rpartition(".")
        held = module.children()[child][name]
        lane = engine.slot_pool.lanes(layer, 1)[index]
        view = engine.slot_pool.memory.view[lane.start : lane.start + held.nbytes]
        assert bytes(view) == np.array(held).tobytes() or array.dtype == mx.bfloat16
        if array.name == "down_proj.scales":
            view[:] = bytes(held.nbytes)
    after = alone(engine, 0, [0, 1])
    assert not np.array_equal(before, after)
