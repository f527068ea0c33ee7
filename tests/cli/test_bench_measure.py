"""`localmoe bench measure` as a command."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from localmoe.planning.figures import Figures, figures_path
from localmoe.planning.read_rates import ReadPoint

Call = Callable[..., subprocess.CompletedProcess[str]]
KEPT = Figures(
    cpu="A processor",
    cores=2,
    memory_bytes=1 << 30,
    measured_at="2026-01-02T03:04:05+00:00",
    version="1",
    drive="/models",
    is_direct=True,
    reads=(ReadPoint(1 << 16, 1, 1e9),),
)


@pytest.fixture
def call(tmp_path: Path) -> Call:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("LOCALMOE_")}
    ours = {
        "LOCALMOE_CACHE": str(tmp_path / "cache"),
        "LOCALMOE_STATE": str(tmp_path / "state"),
    }

    def called(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "localmoe", "bench", "measure", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**kept, **ours},
            timeout=120,
        )

    return called


def test_measured_once_and_shown_again(call: Call, tmp_path: Path) -> None:
    done = call("--quick", "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert {(p["nbytes"], p["depth"]) for p in figures["reads"]} == {
        (size, depth) for size in (256 << 10, 1 << 20) for depth in (1, 4)
    }
    assert set(figures["kernels"]) | set(figures["failed"]) == {"Q4_K", "Q8_0"}
    assert list((tmp_path / "cache").iterdir()) == []
    shown = call("--show", "--json")
    assert json.loads(shown.stdout) == figures
    assert "Direct reads from the drive of" in call("--show").stdout


@pytest.mark.parametrize("name", ["models[/x]", "[red]models"])
def test_a_folder_is_shown_by_its_name_whatever_that_is(
    call: Call, tmp_path: Path, name: str
) -> None:
    path = figures_path(tmp_path / "state" / "figures", tmp_path)
    dataclasses.replace(KEPT, drive=name, cpu="\x1b]0;\ud800processor").write(path)
    done = call("--show", "--disk", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert f"Direct reads from the drive of {name}, GB/s" in done.stdout
    assert "]0;processor, 2 cores" in done.stdout
    assert "\x1b" not in done.stdout


def test_a_drive_that_is_not_there_is_not_made(call: Call, tmp_path: Path) -> None:
    wrong = tmp_path / "modle.gguf"
    done = call("--disk", str(wrong))
    assert done.returncode == 1
    assert f"there is no {wrong}" in " ".join(done.stderr.split())
    assert not wrong.exists()


def test_nothing_measured_yet(call: Call) -> None:
    done = call("--show")
    assert done.returncode == 1
    assert "localmoe bench measure does it" in done.stderr
