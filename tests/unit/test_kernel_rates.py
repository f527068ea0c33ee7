"""Kernels are measured in children; one that dies takes no other figure along."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from localmoe.bench import kernel_rates
from localmoe.bench.kernel_rates import KernelRequest, measure_kernels
from localmoe.bench.process import run_child
from localmoe.bench.request import DecodeRequest

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
