"""`localmoe trace record` as a command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from localmoe.prediction.trace_reader import read_trace

ZooModel = Callable[[str], Path]
SHORT = ("--context", "64", "--threads", "1")


def record(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "localmoe", "trace", "record", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_prompts_are_recorded_with_what_the_router_said(
    zoo_model: ZooModel, tmp_path: Path, unexplained: Callable[[Any], list[str]]
) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "a.moetrace"
    prompts.write_text("one prompt\n\nand another one\n")
    options = ("--prompts", str(prompts), "--out", str(out), "--generate", "3")
    model = str(zoo_model("qwen3moe"))
    done = record(model, *SHORT, *options, "--guesses", "--scores", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert unexplained(answer) == []
    trace = read_trace(out)
    assert answer["tokens"] == trace.n_tokens
    assert (trace.model, trace.phase) == (Path(model).name, "decode")
    assert list(trace.guesses) == ["next_layer", "layer_after_next"]
    assert trace.scores is not None
    assert np.isfinite(trace.scores).all()
    assert all(layer.expert_nbytes > 1 for layer in trace.moe_layers)
    short = tmp_path / "short.moetrace"
    options = ("--prompts", str(prompts), "--out", str(short), "--tokens", "4")
    assert record(model, *SHORT, *options).returncode == 0
    assert np.array_equal(read_trace(short).routing, trace.routing[:4])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.moetrace", "prompts.txt", "short.moetrace",
    ]  # fmt: skip


def test_errors_are_one_line_and_leave_nothing(zoo_model: ZooModel, tmp_path: Path) -> None:
    prompts, empty = tmp_path / "prompts.txt", tmp_path / "empty.txt"
    prompts.write_text("some words")
    empty.write_text("\n\n")
    model, out = str(zoo_model("qwen3moe")), str(tmp_path / "a.moetrace")
    for arguments, message in (
        ((model, "--prompts", str(tmp_path / "none"), "--out", out), "cannot read the prompts"),
        ((model, "--prompts", str(empty), "--out", out), "has no prompts"),
        ((model, "--prompts", str(prompts), "--out", "a.npz"), "must end in .moetrace"),
        ((str(zoo_model("llama")), "--prompts", str(prompts), "--out", out), "dense model"),
        ((model, "--prompts", str(prompts), "--out", f"{tmp_path}/no/a.moetrace"), "cannot write"),
    ):
        done = record(*arguments, *SHORT)
        assert (done.returncode, done.stdout) == (1, "")
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.txt", "prompts.txt"]
