"""Kernels are measured in children; one that dies takes no other figure along."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from localmoe.backends.llama.planned import plan_model
from localmoe.bench import small_models
from localmoe.bench.kernel_rates import KernelRequest, measure_kernels
from localmoe.bench.process import run_child
from localmoe.bench.request import DecodeRequest
from localmoe.bench.spread import is_doubtful
from localmoe.planning.figures import TokenCosts

_DIES = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"
FEW = KernelRequest(experts=8, tokens=4, prompt_tokens=8, types=("Q4_K", "Q8_0"))


def dying(request: DecodeRequest) -> dict[str, Any] | None:
    return run_child((sys.executable, "-c", _DIES), request, os.environ)


def living(request: DecodeRequest) -> dict[str, Any] | None:
    assert Path(request.model).is_file()
    return report([1.0, 2.0, 3.0])


def report(seconds: list[float], hit_rate: float = 1.0, stall: float = 0.0) -> dict[str, Any]:
    return {
        "hit_rate": hit_rate,
        "stall_seconds_per_token": stall,
        "extra": {"token_seconds": seconds, "prefill_tokens_per_second": 4.0},
    }


def test_a_death_is_told_with_its_signal_and_nothing_is_left(tmp_path: Path) -> None:
    found = measure_kernels(tmp_path, FEW, dying)
    assert found.kernels == {}
    assert found.costs == TokenCosts()
    assert set(found.failed) == {"layers", "Q4_K", "Q8_0"}
    assert all("died of signal 4" in reason for reason in found.failed.values())
    assert list(tmp_path.iterdir()) == []


def test_a_death_of_one_lets_the_others_go_on(tmp_path: Path) -> None:
    def mixed(request: DecodeRequest) -> dict[str, Any] | None:
        return (dying if request.model.endswith("Q4_K.gguf") else living)(request)

    found = measure_kernels(tmp_path, FEW, mixed)
    assert set(found.kernels) == {"Q8_0"}
    assert set(found.failed) == {"Q4_K"}
    assert found.costs.attention_bytes_per_second is None  # a longer context took no longer


class Truth:
    """A machine of which it is known what a token takes."""

    streamed, expert, missed, rate = 4e-5, 2e-6, 7e-5, 30e9

    def __init__(self, layer: float, row: float, attention: float) -> None:
        self.layer, self.row, self.attention = layer, row, attention

    def __call__(self, request: DecodeRequest) -> dict[str, Any]:
        plan = plan_model(Path(request.model), request.settings, 1 << 40)
        work, positions = plan.work, request.prompt_tokens + request.tokens / 2
        heads = [
            plan.catalog.metadata[f"qwen3moe.attention.{key}"]
            for key in ("head_count", "key_length")
        ]
        seconds = work.layers * self.layer
        hit_rate, stall = 1.0, 0.0
        if plan.slot_plan.plan.streams:
            seconds += work.layers * (self.streamed + work.experts_used * self.expert)
            if plan.slot_plan.plan.slots < 0.9 * plan.slot_plan.plan.experts:
                hit_rate, stall = 0.8, 2e-3
                seconds += stall + work.layers * (1 - 0.8**work.experts_used) * self.missed
        seconds += (work.resident_rows + work.routed_rows) * self.row
        seconds += 4 * positions * work.layers * math.prod(heads) / self.attention
        seconds += (work.resident_nbytes + work.routed_nbytes) / self.rate
        return report([seconds] * 3, hit_rate, stall)


@pytest.mark.parametrize(("layer", "row", "attention"), [(1e-6, 30e-9, 2e9), (1e-3, 1e-9, 50e9)])
def test_costs_are_told_apart(tmp_path: Path, layer: float, row: float, attention: float) -> None:
    many = KernelRequest(experts=16, tokens=4, prompt_tokens=8, types=("Q8_0",))
    found = measure_kernels(tmp_path, many, Truth(layer, row, attention))
    assert found.costs.layer_seconds == pytest.approx(layer, rel=1e-3)
    assert found.costs.streamed_layer_seconds == pytest.approx(4e-5, rel=1e-3)
    assert found.costs.streamed_expert_seconds == pytest.approx(2e-6, rel=1e-3)
    assert found.costs.missed_layer_seconds == pytest.approx(7e-5, rel=1e-3)
    assert found.costs.row_seconds == pytest.approx(row, rel=1e-3)
    assert found.costs.attention_bytes_per_second == pytest.approx(attention, rel=1e-3)
    if not found.doubtful:
        rate = found.kernels["Q8_0"].decode_bytes_per_second
        assert rate == pytest.approx(30e9, rel=1e-2)


def test_without_their_type_all_that_is_beside_counts_as_layers(tmp_path: Path) -> None:
    found = measure_kernels(tmp_path, replace(FEW, types=("Q4_K",)), Truth(1e-3, 1e-9, 50e9))
    assert found.costs.layer_seconds == pytest.approx(1e-3, rel=0.3)
    assert found.costs.row_seconds is None


def test_no_cost_is_below_zero(tmp_path: Path) -> None:
    """Noise may have rows seem to make a token quicker."""
    many = replace(FEW, experts=16, types=("Q8_0",))
    found = measure_kernels(tmp_path, many, Truth(1e-3, -2e-9, 50e9))
    assert found.costs.row_seconds is None
    assert found.costs.layer_seconds is not None
    assert found.costs.layer_seconds > 0


def test_killed_for_its_memory(tmp_path: Path) -> None:
    found = measure_kernels(tmp_path, FEW, lambda request: None)
    assert "memory may not suffice" in found.failed["Q8_0"]


def test_a_full_drive_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(small_models, "write_uniform", full)
    found = measure_kernels(tmp_path, FEW, living)
    assert found.failed == dict.fromkeys(("layers", "Q4_K", "Q8_0"), "No space left on device")


def test_what_differs_or_drowns_is_doubtful(tmp_path: Path) -> None:
    """Without Q8_0 the thin model takes its 48 layers; of 0.1 s each, two are most of 0.2 s."""
    seconds = {"Q8_0": [4.8] * 3, "Q4_K": [0.2] * 3, "Q6_K": [0.5, 1.0, 5.0], "Q5_K": [1.0] * 3}

    def run(request: DecodeRequest) -> dict[str, Any]:
        samples = seconds[Path(request.model).stem]
        return report(samples)

    few = replace(FEW, types=("Q4_K", "Q6_K", "Q5_K"))
    found = measure_kernels(tmp_path, few, run)
    assert found.doubtful == ("Q4_K", "Q6_K")
    assert set(found.kernels) == {"Q4_K", "Q6_K", "Q5_K"}


def test_a_layer_may_be_doubtful(tmp_path: Path) -> None:
    def run(request: DecodeRequest) -> dict[str, Any]:
        return report([0.1, 0.2, 0.9])

    assert "layers" in measure_kernels(tmp_path, FEW, run).doubtful


@pytest.mark.parametrize(
    ("samples", "wide"),
    [([1.0], False), ([1.0] * 31 + [50.0], False), ([1.0, 2.0], True), ([1.0, 1.2, 0.9], False)],
)
def test_one_interruption_is_no_doubt(samples: list[float], wide: bool) -> None:
    assert is_doubtful(samples) == wide
