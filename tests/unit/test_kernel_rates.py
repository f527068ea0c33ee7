"""Kernels are measured in children; one that dies takes no other figure along."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from localmoe.bench import kernel_rates
from localmoe.bench.kernel_rates import KernelRequest, measure_kernels
from localmoe.bench.process import run_child
from localmoe.bench.request import DecodeRequest
from localmoe.bench.spread import is_doubtful

_DIES = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"
FEW = KernelRequest(experts=8, tokens=4, prompt_tokens=8, types=("Q4_K", "Q8_0"))


def dying(request: DecodeRequest) -> dict[str, Any] | None:
    return run_child((sys.executable, "-c", _DIES), request, os.environ)


def living(request: DecodeRequest) -> dict[str, Any] | None:
    assert Path(request.model).is_file()
    return {"extra": {"token_seconds": [1.0, 2.0, 3.0], "prefill_tokens_per_second": 4.0}}


def test_a_death_is_told_with_its_signal_and_nothing_is_left(tmp_path: Path) -> None:
    found = measure_kernels(tmp_path, FEW, dying)
    assert found.kernels == {}
    assert found.layer_seconds is None
    assert set(found.failed) == {"layers", "Q4_K", "Q8_0"}
    assert all("died of signal 4" in reason for reason in found.failed.values())
    assert list(tmp_path.iterdir()) == []


def test_a_death_of_one_lets_the_others_go_on(tmp_path: Path) -> None:
    def mixed(request: DecodeRequest) -> dict[str, Any] | None:
        return (dying if request.model.endswith("Q4_K.gguf") else living)(request)

    found = measure_kernels(tmp_path, FEW, mixed)
    assert set(found.kernels) == {"Q8_0"}
    assert set(found.failed) == {"Q4_K"}
    assert found.layer_seconds == pytest.approx(2.0 / 48)


def test_killed_for_its_memory(tmp_path: Path) -> None:
    found = measure_kernels(tmp_path, FEW, lambda request: None)
    assert "memory may not suffice" in found.failed["Q8_0"]


def test_a_full_drive_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kernel_rates, "write_uniform", full)
    found = measure_kernels(tmp_path, FEW, living)
    assert found.failed == dict.fromkeys(("layers", "Q4_K", "Q8_0"), "No space left on device")


def test_what_differs_or_drowns_is_doubtful(tmp_path: Path) -> None:
    """The thin model takes its 48 layers; at 0.1 s each, two of them are most of 0.2 s."""
    seconds = {"Q8_0": [4.8] * 3, "Q4_K": [0.2] * 3, "Q6_K": [0.5, 1.0, 5.0], "Q5_K": [1.0] * 3}

    def run(request: DecodeRequest) -> dict[str, Any]:
        samples = seconds[Path(request.model).stem]
        return {"extra": {"token_seconds": samples, "prefill_tokens_per_second": 4.0}}

    few = replace(FEW, types=("Q4_K", "Q6_K", "Q5_K"))
    found = measure_kernels(tmp_path, few, run)
    assert found.doubtful == ("Q4_K", "Q6_K")
    assert set(found.kernels) == {"Q4_K", "Q6_K", "Q5_K"}


def test_a_layer_may_be_doubtful(tmp_path: Path) -> None:
    def run(request: DecodeRequest) -> dict[str, Any]:
        return {"extra": {"token_seconds": [0.1, 0.2, 0.9], "prefill_tokens_per_second": 4.0}}

    assert "layers" in measure_kernels(tmp_path, FEW, run).doubtful


@pytest.mark.parametrize(
    ("samples", "wide"),
    [([1.0], False), ([1.0] * 31 + [50.0], False), ([1.0, 2.0], True), ([1.0, 1.2, 0.9], False)],
)
def test_one_interruption_is_no_doubt(samples: list[float], wide: bool) -> None:
    assert is_doubtful(samples) == wide
