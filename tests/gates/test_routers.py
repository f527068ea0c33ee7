"""What is read off llama.cpp's graph is what it routes by: a router chooses its own experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from localmoe import Settings
from localmoe.backends.llama.kernels import Kernels
from localmoe.backends.llama.load import load
from localmoe.backends.llama.routers import Routers
from localmoe.backends.llama.routing_log import RoutingLog
from localmoe.errors import EngineError

ZooModel = Callable[[str], Path]
TOKENS = [5, 9, 7, 30, 9, 11]
RESIDENT = Settings(context_tokens=64, threads=1)
STREAMED = replace(RESIDENT, slots=12)


@pytest.mark.parametrize("name", ["qwen3moe", "olmoe", "glm4moe", "gpt-oss"])
def test_a_router_applied_to_its_own_state_gives_the_choice(name: str, zoo_model: ZooModel) -> None:
    kernels = Kernels(1)
    routers, seen = Routers(kernels), 0

    def watch(node: int, layer: int, experts: Sequence[int]) -> None:
        nonlocal seen
        routing = routers.read(node, layer)
        assert routing is not None
        scores = routers.product(layer, routing.state)
        made = routing.router.scores(routing.probabilities)
        order = np.argsort(-routing.router.choice(made))
        assert set(order[: len(experts)].tolist()) == set(experts)
        if name != "gpt-oss":  # its scores have a bias, which guesses learn as their average error
            assert scores - scores.mean() == pytest.approx(made - made.mean(), abs=1e-3)
        seen += 1

    with load(zoo_model(name), STREAMED) as engine:
        engine.watch_routing(watch)
        for token in TOKENS:
            engine.decode([token])
        assert seen == len(TOKENS) * len(engine.catalog.layers)
    kernels.close()


def test_watching_and_guessing_change_no_bit(zoo_model: ZooModel) -> None:
    path = zoo_model("qwen3moe")
    results = []
    for watched in (False, True):
        with load(path, STREAMED) as engine:
            layers = {layer.layer: layer for layer in engine.catalog.layers}
            log = RoutingLog(layers, 1)
            engine.watch_routing(log.watch if watched else None)
            results.append(np.concatenate([engine.decode([token]) for token in TOKENS]))
            if watched:
                trace = log.trace()
                assert len(trace.routing) == len(TOKENS)
                assert (trace.guesses["next_layer"][1:, 1:] >= 0).all()
            log.close()
    assert np.array_equal(results[0], results[1])


def test_forms_that_are_not_recognised_are_told_and_not_guessed(zoo_model: ZooModel) -> None:
    with load(zoo_model("dbrx"), STREAMED) as engine:
        layers = {layer.layer: layer for layer in engine.catalog.layers}
        log = RoutingLog(layers, 1)
        engine.watch_routing(log.watch)
        for token in TOKENS:
            engine.decode([token])
        engine.watch_routing(None)
        log.close()
    assert log.unknown_layers == set(layers)
    assert log.guesses == 0


def test_a_resident_model_has_nothing_to_watch(zoo_model: ZooModel) -> None:
    with (
        load(zoo_model("qwen3moe"), RESIDENT) as engine,
        pytest.raises(EngineError, match="every expert is in memory"),
    ):
        engine.watch_routing(None)
