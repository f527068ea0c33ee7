"""`localmoe bench cache` as a command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localmoe.cache.policy_table import POLICIES
from localmoe.prediction.trace import Trace, made_up_layer
from localmoe.prediction.trace_file import write_trace

ZooModel = Callable[[str], Path]


def cache(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "localmoe", "bench", "cache", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def some_trace(directory: Path) -> Path:
    rng = np.random.default_rng(1)
    routing = np.argsort(rng.random((80, 3, 8)) + np.arange(8) / 8, axis=2)[:, :, :2]
    layers = tuple(made_up_layer(n, 8, 2, (1000,)) for n in range(3))
    path = directory / "some.moetrace"
    with path.open("wb") as file:
        write_trace(file, [Trace((0, 1, 2), 8, routing.astype(np.int32), moe_layers=layers)])
    return path


def test_json_of_a_trace_is_explained_and_adds_up(
    tmp_path: Path, unexplained: Callable[[Any], list[str]]
) -> None:
    names = [*POLICIES, "lru/layer"]
    path = str(some_trace(tmp_path))
    done = cache(path, "--policies", ",".join(names), "--sizes", "25%,18,5", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert [key for key in unexplained(answer) if key not in ("belady", *names)] == []
    assert [size["slots"] for size in answer["sizes"]] == [5, 6, 18]
    assert (answer["tokens"], answer["scored_tokens"], answer["expert_bytes"]) == (80, 60, 1000)
    for size in answer["sizes"]:
        assert list(size["policies"]) == ["belady", *names]
        assert size["uniform_hit_rate"] == size["slots"] / 24
        best = size["policies"]["belady"]["hit_rate"]
        for figures in filter(None, size["policies"].values()):
            assert figures["hit_rate"] <= best
            nbytes = 1000 * figures["misses_per_token"]
            assert abs(nbytes - figures["read_bytes_per_token"]) < 1e-6
            assert abs(sum(figures["layer_misses_per_token"]) - figures["misses_per_token"]) < 1e-9
    assert answer["sizes"][0]["policies"]["lru/layer"] is None


def test_a_model_is_recorded_and_people_get_a_table(zoo_model: ZooModel) -> None:
    short = ("--tokens", "16", "--context", "64", "--threads", "1")
    done = cache(str(zoo_model("qwen3moe")), *short, "--policies", "lru", "--sizes", "50%")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()[:4]] == [
        "found", "belady", "lru", "without",
    ]  # fmt: skip
    assert "12 of 16 tokens were scored" in done.stdout


def test_a_report_a_picture_and_a_device(
    tmp_path: Path, unexplained: Callable[[Any], list[str]]
) -> None:
    pytest.importorskip("matplotlib")
    path, page, picture = some_trace(tmp_path), tmp_path / "r.html", tmp_path / "p.png"
    options = ("--policies", "lru", "--sizes", "25%,75%", "--device", "nvme-gen4", "--json")
    done = cache(str(path), *options, "--report", str(page), "--plot", str(picture))
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert [key for key in unexplained(answer) if key not in ("belady", "lru")] == []
    assert list(answer["acting"]["predictors"]) == [
        "nothing", "perfect", "previous_token", "frequency",
    ]  # fmt: skip
    assert page.read_text().startswith("<!doctype html>")
    assert picture.read_bytes().startswith(b"\x89PNG")
    done = cache(str(path), *options, "--model", "olmoe-1b-7b")
    answer = json.loads(done.stdout)
    assert (len(answer["layers"]), answer["experts_used"]) == (16, 8)
    assert answer["simulation"]["model"] == "olmoe-1b-7b"
    assert all(
        figures["tokens_per_second"] > 0
        for size in answer["sizes"]
        for figures in size["policies"].values()
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "p.png", "r.html", "some.moetrace",
    ]  # fmt: skip


def test_errors_are_one_line(tmp_path: Path) -> None:
    path = str(some_trace(tmp_path))
    for arguments, message in (
        ((path, "--policies", "best"), "there is no policy best"),
        ((path, "--sizes", "1"), "no size of a cache here"),
        ((path, "--sizes", "200%"), "no size of a cache here"),
        ((path, "--sizes", "many"), "no size of a cache here"),
        ((path, "--policies", ","), "names 0 things"),
        ((path, "--device", "floppy"), "there is no device floppy"),
        ((path, "--model", "other"), "there is no known model 'other'"),
        ((path, "--policies", "lru", "--report", f"{tmp_path}/no/r.html"), "cannot write"),
        ((str(tmp_path / "none.moetrace"),), "there is no file"),
    ):
        done = cache(*arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
