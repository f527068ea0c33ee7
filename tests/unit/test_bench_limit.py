"""The arithmetic behind the verdict of benchmarks/limit.py, and the replay of a trace."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from localmoe.backends.llama.load import load
from localmoe.bench.decode import measure_engine
from localmoe.bench.machine import process_age_seconds
from localmoe.bench.prefill import measure_prefill
from localmoe.bench.request import DecodeRequest, PrefillRequest
from localmoe.bench.rerouted import reroute
from localmoe.errors import SettingsError
from localmoe.prediction.trace import Trace
from localmoe.prediction.trace_reader import read_trace
from localmoe.settings import Settings

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def module() -> Iterator[Callable[[str], ModuleType]]:
    """Import a module of the benchmarks, which are scripts and no package."""
    known = set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module
    sys.path.remove(str(BENCHMARKS))
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]


def streamed(tokens_per_second: float, read_bytes: float) -> dict[str, float]:
    return {
        "tokens_per_second": tokens_per_second,
        "bytes_read_per_token": read_bytes,
        "resident_tokens_per_second": 16.0,
        "stall_seconds_per_token": 0.03,
        "hit_rate": 0.8,
        "fraction_of_limit": 0.7,
    }


@pytest.mark.parametrize(
    ("read_bytes", "bound_by", "fraction"),
    [(100e6, "computing", 0.5), (300e6, "reading", 0.75)],
)
def test_the_longer_of_reading_and_computing_is_the_limit(
    module: Callable[[str], ModuleType], read_bytes: float, bound_by: str, fraction: float
) -> None:
    # A token takes 0.2 s; computing 0.1 s; the device 0.05 or 0.15 s.
    found = module("limit_figures").decode_figures(
        streamed(5.0, read_bytes), {"tokens_per_second": 10.0}, 2e9
    )
    assert found["bound_by"] == bound_by
    assert found["fraction"] == pytest.approx(fraction)
    assert found["fraction_if_added"] == pytest.approx(
        max(0.1, 0.05) / 0.15 if fraction == 0.5 else 0.6
    )
    assert found["own_compute_seconds"] == pytest.approx(1 / 16)


def test_prefill_is_held_against_the_fastest_resident_run(
    module: Callable[[str], ModuleType],
) -> None:
    ours = {"seconds": 40.0, "read_bytes": 8e9, "stall_seconds": 1.0}
    found = module("limit_figures").prefill_figures(
        ours, [{"seconds": 30.0}, {"seconds": 24.0}], 2e9
    )
    assert found["fraction"] == pytest.approx(0.6)
    assert module("limit_figures").prefill_figures(ours, [{"seconds": 3.0}], 2e9)["fraction"] == 0.1


def test_a_peer_that_met_its_deadline_is_at_least_so_slow(
    module: Callable[[str], ModuleType],
) -> None:
    ratio = module("limit_figures").peer_ratio
    ours = {"seconds": 10.0, "read_seconds": 2.0, "compute_seconds": 8.0}
    found = ratio({"seconds": 90.0, "chunks": []}, ours)
    assert found == {"ratio": 9.0, "at_least": False, "possible_ratio": 11.25}
    late = {"deadline_seconds": 130.0, "chunks": [{"process_seconds": 20.0}, {}]}
    assert ratio(late, ours) == {"ratio": 11.0, "at_least": True, "possible_ratio": 13.75}
    assert ratio({"deadline_seconds": 130.0, "chunks": []}, ours)["ratio"] == 0.0


def test_a_breakdown_adds_up(module: Callable[[str], ModuleType]) -> None:
    where = {"token_seconds": 0.1, "stall_seconds": 0.03, "own_seconds": 0.005}
    parts = module("limit_figures").breakdown(where, 0.06)
    assert sum(parts.values()) == pytest.approx(0.1)
    assert parts["rest"] == pytest.approx(0.005)


def test_what_was_not_measured_does_not_hold(module: Callable[[str], ModuleType]) -> None:
    criterion = module("limit_figures").Criterion
    assert criterion("x", 0.8, 0.8).holds
    assert not criterion("x", 0.79, 0.8).holds
    assert not criterion("x", None, 0.8).holds
    assert criterion("x", 0.9, 1.0, at_most=True).holds
    assert not criterion("x", 1.1, 1.0, at_most=True).holds
    assert criterion("x", 1.1, 1.0, at_most=True).to_json()["wanted"] == "<= 1"


def test_a_child_that_passes_its_deadline_tells_what_was_done(
    module: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = module("limit_child")
    script = tmp_path / "worker.py"
    script.write_text("import time\nprint('{\"tokens\": 1}', flush=True)\ntime.sleep(60)\n")
    monkeypatch.setattr(child, "WORKER", script)
    answer = child.run_worker("peer-prefill", {}, deadline_seconds=1.0)
    assert answer == {"deadline_seconds": 1.0, "chunks": [{"tokens": 1}]}
    script.write_text("print('{\"tokens\": 1}')\nprint('{\"seconds\": 2}')\n")
    assert child.run_worker("prefill", {}) == {"seconds": 2, "chunks": [{"tokens": 1}]}
    script.write_text("raise SystemExit('no such model')\n")
    with pytest.raises(SystemExit, match="no such model"):
        child.run_worker("prefill", {})


def test_a_replayed_trace_is_what_is_computed_and_read(zoo_model: Callable[[str], Path]) -> None:
    model = str(zoo_model("qwen3moe"))
    request = DecodeRequest(model, tokens=6, prompt_tokens=3, warm_up_tokens=2, device_seconds=0.0)
    with load(model, Settings(slots=12, context_tokens=64)) as engine:
        layers = engine.catalog.layers
        used, n_experts = layers[0].n_experts_used, layers[0].n_experts
        # Every token takes the same experts: after the prompt nothing is read any more.
        routing = np.tile(np.arange(used, dtype=np.int32), (11, len(layers), 1))
        trace = Trace(tuple(layer.layer for layer in layers), n_experts, routing)
        reroute(engine, trace)
        answer = measure_engine(engine, request)
        assert engine.stats().misses == used * len(layers)
    assert answer["hit_rate"] == 1.0
    assert answer["extra"]["token_read_bytes"] == [0] * 6  # type: ignore[index]
    with load(model, Settings(slots=used * len(layers) + 1, context_tokens=64)) as other:
        reroute(other, trace)
        again = measure_engine(other, request)
    assert again["logits_sha256"] == answer["logits_sha256"]
    with load(model, Settings(slots=12, context_tokens=64)) as own:
        assert measure_engine(own, request)["logits_sha256"] != answer["logits_sha256"]


def test_a_trace_of_another_shape_is_refused(zoo_model: Callable[[str], Path]) -> None:
    trace = read_trace(BENCHMARKS / "routing-trace.npz")
    assert (len(trace.layers), trace.n_experts, trace.n_experts_used) == (29, 32, 8)
    assert 0 <= trace.routing.min() <= trace.routing.max() < 32
    with (
        load(str(zoo_model("qwen3moe")), Settings(slots=12, context_tokens=64)) as engine,
        pytest.raises(SettingsError, match="the trace has"),
    ):
        reroute(engine, trace)


def test_prefill_reads_a_prompt_once(zoo_model: Callable[[str], Path]) -> None:
    model = str(zoo_model("qwen3moe"))
    settings = Settings(slots=20, context_tokens=64)
    found = measure_prefill(PrefillRequest(model, settings, 16, device_seconds=0.0))
    assert found["tokens"] == 16
    assert found["streams"]
    assert found["read_bytes"] > 0  # type: ignore[operator]
    whole = Settings(context_tokens=64)
    resident = measure_prefill(PrefillRequest(model, whole, 16, device_seconds=0.0))
    assert resident["logits_sha256"] == found["logits_sha256"]
    assert resident["read_bytes"] == 0


def test_a_text_must_be_long_enough(zoo_model: Callable[[str], Path], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a")
    request = DecodeRequest(str(zoo_model("qwen3moe")), tokens=20, text=str(text))
    with (
        load(request.model, Settings(slots=20, context_tokens=64)) as engine,
        pytest.raises(SettingsError, match="52 are wanted"),
    ):
        measure_engine(engine, request)


def test_a_process_knows_its_age() -> None:
    assert 0 < process_age_seconds() < 24 * 3600
