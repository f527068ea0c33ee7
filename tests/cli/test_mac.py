"""benchmarks/mac.sh measures everything that it can on a machine that is no Mac."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "mac.sh"


def mac(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("LOCALMOE_")}
    return subprocess.run(
        [str(SCRIPT), "--tiny", "--disk", str(folder), *arguments],
        env={**kept, "PYTHON": sys.executable, "MLX_DISABLE_COMPILE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_one_json_with_all_that_can_be_measured_here(tmp_path: Path) -> None:
    done = mac(tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["missing"] == {"larger": "left out: --tiny", "cost": "left out: --tiny"}
    assert (found["gates"]["counts"], found["gates"]["failed"]) == ({"passed": 1}, [])
    plain, whole, half = found["fitting"]["rows"]
    assert plain["mlx_peak_bytes"] > 0
    assert whole["slots"] == whole["experts"] > half["slots"] > 0
    assert half["planned_bytes"] < whole["planned_bytes"]
    assert len({row["logits_sha256"] for row in (plain, whole, half)}) == 1
    assert all(row["same_logits_as_first"] for row in (plain, whole, half))
    assert all(sum(row["pressure_levels"].values()) > 0 for row in (plain, whole, half))
    assert found["reads"]["points"][0]["bytes_per_second"] > 0
    assert all(row["nine_over_one"] > 0 for row in found["reads"]["expert_records"])
    assert list(tmp_path.iterdir()) == []


def test_what_there_is_no_time_for_is_named(tmp_path: Path) -> None:
    done = mac(tmp_path, "--minutes", "0.1")
    assert done.returncode == 0, done.stderr
    missing = json.loads(done.stdout)["missing"]
    assert set(missing) == {"reads", "fitting", "gates", "larger", "cost"}
    assert set(missing.values()) == {"no time was left"}
