"""Where all experts are in slots a token is evaluated at once, and counted as ever."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from localmoe.backends.mlx.load import load
from localmoe.errors import InterruptedDecodeError
from localmoe.settings import Settings
from zoo_mlx.slots import fill_slots

TOKENS = [(17 * place + 5) % 250 for place in range(48)]
Folders = Callable[..., Path]


class Counted:
    """An engine whose evaluations for experts are counted, by how many arrays each has."""

    def __init__(self, folder: Path, slots: int) -> None:
        self.engine = load(folder, Settings(slots=slots, context_tokens=64))
        self.evaluated: list[int] = []
        self.server = self.engine._open().server
        self.server._evaluate = self._evaluate

    def _evaluate(self, *arrays: Any) -> None:
        self.evaluated += [len(arrays)] if arrays else []
        mx.eval(*arrays)

    def decode(self, tokens: Sequence[int]) -> Any:
        self.evaluated.clear()
        return self.engine.decode(list(tokens))

    @property
    def n_layers(self) -> int:
        return len(self.engine.catalog.layers)

    @property
    def n_experts(self) -> int:
        return self.engine.plan.experts


@pytest.fixture
def engines(folders: Folders) -> Iterator[Callable[[int], Counted]]:
    made: list[Counted] = []

    def engine(slots: int) -> Counted:
        made.append(Counted(folders("qwen3_moe"), slots))
        return made[-1]

    yield engine
    for each in made:
        each.engine.close()


def filled(engines: Callable[[int], Counted]) -> Counted:
    """Return an engine with all experts in slots and nothing in its context."""
    whole = engines(100_000)
    fill_slots(whole.engine)
    return whole


def test_one_evaluation_gives_the_same_bits_and_counts_the_same(
    engines: Callable[[int], Counted],
) -> None:
    whole, few = filled(engines), engines(3)
    seen: dict[str, list[Any]] = {"whole": [], "few": []}
    before = whole.engine.stats()
    whole.engine.watch_experts(lambda _, keys: seen["whole"].extend(keys))
    few.engine.watch_experts(lambda _, keys: seen["few"].extend(keys))
    for chunk in (TOKENS[:9], *([token] for token in TOKENS[9:20])):
        assert np.array_equal(whole.decode(chunk), few.decode(chunk))
        if len(chunk) == 1:
            assert whole.evaluated == [whole.n_layers]
            assert len(few.evaluated) >= few.n_layers
    spent, others = whole.engine.stats() - before, few.engine.stats()
    assert (spent.misses, spent.read_bytes) == (0, 0)
    assert spent.hits == others.hits + others.misses > 0
    assert sorted(seen["whole"]) == sorted(seen["few"])


def test_a_slot_less_and_each_layer_is_asked(engines: Callable[[int], Counted]) -> None:
    n_experts = engines(3).n_experts
    less = engines(n_experts - 1)
    for token in TOKENS:
        less.decode([token])
        assert len(less.evaluated) >= less.n_layers
    assert not less.engine.cache.has_all()


def test_slots_that_are_given_back_end_it_until_all_are_there_again(
    engines: Callable[[int], Counted],
) -> None:
    whole, few = filled(engines), engines(3)
    limits = list(whole.engine.slot_pool.limits)
    for step, token in enumerate(TOKENS[:12]):
        if step == 3:
            whole.engine.cache.resize([limit // 2 for limit in limits])
        if step == 6:
            whole.engine.cache.resize(limits)
        if step == 9:
            fill_slots(whole.engine)
        assert np.array_equal(whole.decode([token]), few.decode([token]))
        assert (whole.evaluated == [whole.n_layers]) == (step < 3 or step >= 9)


def test_an_interrupt_between_layers_leaves_nothing_to_count(
    engines: Callable[[int], Counted],
) -> None:
    whole, other = filled(engines), engines(3)
    whole.decode(TOKENS[:4])
    other.decode(TOKENS[:4])
    layers: list[int] = []
    serve = whole.server.serve

    def interrupting(switch: Any, *rest: Any) -> mx.array:
        layers.append(switch.layer)
        whole.server.interrupted = len(layers) == 2
        return serve(switch, *rest)

    whole.server.serve = interrupting  # type: ignore[method-assign]
    with pytest.raises(InterruptedDecodeError):
        whole.decode(TOKENS[4:5])
    assert len(layers) == 2
    assert whole.engine.position == 4
    assert np.array_equal(whole.decode(TOKENS[4:5]), other.decode(TOKENS[4:5]))
