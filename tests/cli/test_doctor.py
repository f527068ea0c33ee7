"""`localmoe doctor` as a command: its exit status is that of the run which would follow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Call = Callable[..., subprocess.CompletedProcess[str]]
DOCS = Path(__file__).parents[2] / "docs" / "doctor.md"


@pytest.fixture
def call(demo_model_path: Path, tmp_path: Path) -> Call:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("LOCALMOE_")}
    ours = {
        "LOCALMOE_CACHE": str(demo_model_path.parent),
        "LOCALMOE_STATE": str(tmp_path / "state"),
    }

    def called(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "localmoe", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**kept, **ours, **env},
            timeout=60,
        )

    return called


def test_one_object_of_checks(call: Call) -> None:
    done = call("doctor", "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["works"], done.stderr) == (0, True, "")
    assert len(answer["checks"]) == 21
    page = DOCS.read_text()
    for check in answer["checks"]:
        assert f"`{check['name']}`" in page, "docs/doctor.md explains every check"
        assert (check["mend"] is None) == (check["verdict"] == "ok")


def test_a_page_for_people(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    done = call("doctor", LOCALMOE_STATE=str(file / "state"), PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    place = next(i for i, line in enumerate(lines) if "state folder" in line)
    assert lines[place].startswith("!")
    assert lines[place + 1].strip() == "-> export LOCALMOE_STATE=/a/folder/that/is/yours"
    assert lines[-1].startswith("localmoe run works here. Could be better:")
    assert "state folder" in lines[-1]


@pytest.mark.parametrize("case", ["fits", "small", "garbage", "missing", "long", "no folder"])
def test_the_exit_status_is_that_of_run(
    call: Call, zoo_model: Callable[[str], Path], tmp_path: Path, case: str
) -> None:
    garbage, file = tmp_path / "garbage.gguf", tmp_path / "file"
    garbage.write_text("GGUF, they said")
    file.touch()
    words, env = {
        "fits": ((str(zoo_model("qwen3moe")), "--memory", "1GiB"), {}),
        "small": ((str(zoo_model("qwen3moe")), "--memory", "100MiB"), {}),
        "garbage": ((str(garbage),), {}),
        "missing": ((str(tmp_path / "missing.gguf"),), {}),
        "long": ((str(tmp_path / f"{'a' * 300}.gguf"),), {}),
        "no folder": ((), {"LOCALMOE_CACHE": str(file / "cache")}),
    }[case]
    short = ("--max-tokens", "1", "--context", "256", "--raw")
    looked, ran = call("doctor", *words, **env), call("run", *words, *short, **env)
    assert looked.returncode == ran.returncode, (looked.stdout, ran.stderr)
    assert (looked.returncode == 0) == (case == "fits")
    assert ("works here" in looked.stdout) == (case == "fits")


def test_help_has_examples(call: Call) -> None:
    done = call("doctor", "--help")
    assert "localmoe doctor big.gguf" in done.stdout
