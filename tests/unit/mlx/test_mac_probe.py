"""The arithmetic of benchmarks/mac.sh, and what it reads from a Mac's own tools."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
TIME_TEXT = """\
        2.31 real         1.02 user         0.33 sys
           412614656  maximum resident set size
                   0  average shared memory size
           987654321  instructions retired
           205914752  peak memory footprint
"""


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that imports a module of the benchmarks, which are scripts, no package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_peaks_are_read_from_the_output_of_time(module: Any) -> None:
    probe = module("mac_probe")
    expected = {"max_resident_bytes": 412614656, "peak_footprint_bytes": 205914752}
    assert probe.peaks(TIME_TEXT) == expected
    assert probe.peaks("Killed") == {}


def test_what_takes_too_long_is_ended_with_all_that_it_started(module: Any, tmp_path: Path) -> None:
    probe = module("mac_probe")
    file = tmp_path / "pid"
    program = (
        "import subprocess, sys, time\n"
        "one = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(file)!r}, 'w').write(str(one.pid))\n"
        "time.sleep(60)\n"
    )
    status, _, seen = probe.watched(["-c", program], 2.0)
    assert status is None
    assert seen["least_available_bytes"] > 0
    if sys.platform == "linux" and file.exists():
        deadline = time.monotonic() + 30  # who is killed dies a little later
        while is_alive(int(file.read_text())):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_checkpoint_is_as_large_as_it_is_said_to_be(module: Any, tmp_path: Path) -> None:
    made = module("mlx_checkpoint")
    sizes = made.sized(made.TINY, 3 * 16 * made.expert_nbytes(made.TINY))
    assert sizes["num_hidden_layers"] == 3
    heard: list[tuple[int, int]] = []
    written = made.write_checkpoint(tmp_path, sizes, lambda *said: heard.append(said))
    assert heard[-1] == (written, written)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert {*index["weight_map"].values()} == {p.name for p in tmp_path.glob("*.safetensors")}
    experts = sum(p.nbytes for p in made.pieces(sizes) if ".switch_mlp." in p.name)
    assert experts == 3 * 16 * made.expert_nbytes(sizes)


def test_the_cost_of_a_layer_is_the_difference_of_both_sides(module: Any) -> None:
    cost = module("mlx_cost")
    sides = {"mlx-lm": [0.01, 0.02, 0.03], "localmoe": [0.02, 0.04, 0.05]}
    samples = {side: dict.fromkeys(cost._CLOCKS, each) for side, each in sides.items()}
    found = cost.figures({"layers": 10, "rounds": [samples, samples]})["thread_seconds"]
    assert found["per_layer_median_of_rounds"] == pytest.approx(0.002)
    assert found["ratio_median_of_rounds"] == pytest.approx(2.0)
