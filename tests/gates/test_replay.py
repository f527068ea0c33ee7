"""Replay against the engine: what it says was found is what was found.

G14 a trace replayed with the engine's policy and slots has the engine's hits, misses and bytes,
    after every decode
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from localmoe.backends.llama import load as load_module
from localmoe.backends.llama.engine import LlamaEngine
from localmoe.backends.llama.routing_log import RoutingLog
from localmoe.cache.policy_table import POLICIES
from localmoe.lab.layout import shared_layout
from localmoe.lab.replay import HIT, MISS, replay, without_repeats
from localmoe.native.library import library
from localmoe.prediction.trace import Trace
from localmoe.settings import PolicyName, Settings

ZooModel = Callable[[str], Path]
TOKENS = [int(t) for t in np.random.default_rng(12).zipf(1.3, 400) % 250][:96]
SLOTS = 13
# Not next-use, nor least-stale: what they evict depends on when they are asked.
NAMES: tuple[PolicyName, ...] = ("lru", "lfu", "lrfu", "slru", "two-queue", "static")


def watched(path: Path, policy: PolicyName) -> tuple[Trace, tuple[int, ...], list[list[int]]]:
    """Decode token by token; return the routing, slots by size, and the counters after each."""
    settings = Settings(threads=1, context_tokens=128, slots=SLOTS, policy=policy)
    with load_module.load(path, settings) as engine:
        layers = {layer.layer: layer for layer in engine.catalog.layers}
        log = RoutingLog(layers, 1, guesses=False)
        engine.watch_routing(log.watch)
        counters = decode(engine)
        engine.watch_routing(None)
        log.close()
        assert engine._streaming is not None
        slots = tuple(engine._streaming.pool.limits)
        trace = log.trace()
        known = Trace(
            trace.layers, trace.n_experts, trace.routing, moe_layers=engine.catalog.layers
        )
        return without_repeats(known), slots, counters


def decode(engine: LlamaEngine) -> list[list[int]]:
    """Return hits, misses and bytes after each token."""
    counters = []
    for token in TOKENS:
        engine.decode([token])
        stats = engine.stats()
        counters.append([stats.hits, stats.misses, stats.read_bytes])
    return counters


def unwatched(path: Path, policy: PolicyName) -> list[list[int]]:
    """Decode as it is done when nobody looks: by compiled code, where it was built."""
    settings = Settings(threads=1, context_tokens=128, slots=SLOTS, policy=policy)
    with load_module.load(path, settings) as engine:
        assert (engine.compiled_counts() is None) == (library() is None)
        return decode(engine)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model", ["qwen3moe", "deepseek2", "gpt-oss"])
def test_g14_replay_counts_what_the_engine_counts(
    model: str, name: PolicyName, zoo_model: ZooModel
) -> None:
    trace, slots, counters = watched(zoo_model(model), name)
    layout = shared_layout(trace, SLOTS)
    assert layout.slots == slots
    outcome = replay(trace, layout, POLICIES[name])
    nbytes = np.array([layer.expert_nbytes for layer in trace.sized_layers()])
    misses = (outcome == MISS).sum(2)
    found = np.cumsum(
        np.stack([(outcome == HIT).sum((1, 2)), misses.sum(1), misses @ nbytes], 1), 0
    )
    assert found.tolist() == counters
    assert unwatched(zoo_model(model), name) == counters
    assert 0 < counters[-1][0] < len(TOKENS) * trace.n_experts_used * len(trace.layers)
