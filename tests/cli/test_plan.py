"""`localmoe plan` and `localmoe bench try` as commands."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localmoe.cli import plan_table
from localmoe.cli.plan_table import compare, show_table
from localmoe.cli.planner import Planner
from localmoe.prediction.trace import Trace
from localmoe.prediction.trace_file import write_trace
from localmoe.settings import Settings
from localmoe.synthetic.published import CONFIGS
from localmoe.weights.gguf import read_catalog

ZooModel = Callable[[str], Path]
Unexplained = Callable[[Any], list[str]]


def localmoe(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "localmoe", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_known_model_on_a_known_machine_is_one_screen() -> None:
    options = ("--quant", "q4_k_m", "--machine", "dgx-spark", "--context", "32k")
    done = localmoe("plan", "trinity-large", *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Trinity Large at Q4_K_M on NVIDIA DGX Spark" in done.stdout
    for wanted in (
        "32,768 tokens",
        "tok/s",
        "of 13,824 experts",
        "What would make it faster",
        "1.",
    ):
        assert wanted in done.stdout
    assert len(done.stdout.splitlines()) <= 30
    assert "\x1b" not in done.stdout


def test_json_says_the_same_and_is_explained(unexplained: Unexplained) -> None:
    done = localmoe("plan", "gpt-oss-120b", "--machine", "strix-halo-128", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert unexplained(answer) == []
    assert answer["model"] == "gpt-oss-120b at MXFP4"
    assert answer["file_bytes"] / 1e9 == pytest.approx(63.4, rel=0.02)
    plan = answer["plan"]
    assert plan["slots"] == plan["experts"] == 36 * 128
    assert answer["hit_rate"]["expected"] == 1.0
    assert answer["bytes_read_per_token"] == 0
    decode = answer["decode_tokens_per_second"]
    assert 0 < decode["low"] < decode["expected"] < decode["high"]


def test_a_file_within_a_budget(zoo_model: ZooModel) -> None:
    path = zoo_model("qwen3moe")
    done = localmoe("plan", str(path), "--memory", "1GiB", "--context", "64", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    catalog = read_catalog(path)
    assert answer["file_bytes"] == catalog.resident_nbytes + catalog.expert_nbytes
    assert answer["plan"]["budget_bytes"] == 1 << 30
    assert answer["plan"]["context_tokens"] == 64


def test_a_recording_gives_the_hit_rate(zoo_model: ZooModel, tmp_path: Path) -> None:
    path = zoo_model("qwen3moe")
    layers = read_catalog(path).layers
    routing = np.tile(np.array([1, 5], np.int32), (40, len(layers), 1))
    trace = tmp_path / "same.moetrace"
    with trace.open("wb") as file:
        numbers = tuple(layer.layer for layer in layers)
        write_trace(file, [Trace(numbers, layers[0].n_experts, routing)])
    done = localmoe("plan", str(path), "--memory", "1GiB", "--trace", str(trace))
    assert done.returncode == 0
    done = localmoe("plan", "olmoe", "--memory", "3GiB", "--trace", str(trace))
    assert done.returncode == 1
    assert "is of another model: it has 3 layers of 16 experts, 2 used" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("trinity-larg",), "Did you mean trinity-large"),
        (("trinity-large", "--quant", "q4_k_x"), "Did you mean Q4_K_"),
        (
            ("trinity-large", "--machine", "dgx"),
            "there is no machine 'dgx'. Did you mean dgx-spark",
        ),
        (("trinity-large", "--machine-file", "none.toml"), "cannot read none.toml"),
        (("none.gguf",), "none.gguf"),
        ((), "name one MODEL to plan for, or compare all with --all"),
        (("olmoe", "--all"), "name one MODEL"),
        (("trinity-large", "--memory", "2GiB"), "Use --memory"),
        (("x.gguf", "--quant", "q8_0"), "--quant q8_0 is for known models"),
    ],
)
def test_what_cannot_be_planned_is_one_line(arguments: tuple[str, ...], said: str) -> None:
    done = localmoe("plan", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("context", ["0", "8", "many", "-4k", "99999999999", "32kb"])
def test_a_wrong_context_is_wrong_usage(context: str) -> None:
    done = localmoe("plan", "olmoe", "--context", context)
    assert done.returncode == 2
    assert "is no number of tokens from 16 to" in " ".join(done.stderr.split())


def test_models_are_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], unexplained: Unexplained
) -> None:
    few = {name: CONFIGS[name] for name in ("olmoe", "kimi-k2", "trinity-nano")}
    monkeypatch.setattr(plan_table, "CONFIGS", few)
    planner = Planner("rtx-4090-64", None, Settings(memory_bytes=12 << 30), None, Path())
    rows = compare(planner, "q2_k")
    assert [row["name"] for row in rows] == list(few)
    assert [("error" in row) for row in rows] == [False, True, False]
    assert unexplained(rows) == []
    show_table(planner, rows)
    shown = capsys.readouterr().out
    assert "PC with an RTX 4090 and 64 GB, 12.00 GiB for the model" in shown
    assert "too small" in shown
    assert "Kimi K2 at Q2_K: a budget of 12.00 GiB is too small" in shown


def test_help_has_examples() -> None:
    for command in (("plan",), ("bench", "try")):
        done = localmoe(*command, "--help")
        assert done.returncode == 0
        assert "Examples:" in done.stdout
        assert f"localmoe {' '.join(command)}" in done.stdout


def test_a_trial_is_extrapolated_and_leaves_nothing(
    tmp_path: Path, unexplained: Unexplained
) -> None:
    options = ("--quant", "iq2_xxs", "--disk", "300MB", "--memory", "1GiB", "--tokens", "4")
    done = localmoe("bench", "try", "trinity-nano", *options, "--folder", str(tmp_path), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert unexplained(answer) == []
    assert 2 < answer["tried_layers"] < answer["layers"] == 56
    assert 0 < answer["held_share"] < 1
    assert 0 < answer["hit_rate"] < 1
    assert answer["token_seconds"] > answer["tried_token_seconds"]
    assert answer["moe_layers_ratio"] == pytest.approx(54 / (answer["tried_layers"] - 2))
    assert answer["tokens_per_second"] == pytest.approx(1 / answer["token_seconds"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--disk", "1MB"), "the fewest that say something; --disk allows"),
        (("--memory", "200MiB"), "is too small for this model"),
        (("--folder", "/proc/none"), "cannot write into /proc/none"),
    ],
)
def test_a_trial_that_cannot_be_is_one_line_and_leaves_nothing(
    tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    where = () if "--folder" in options else ("--folder", str(tmp_path))
    done = localmoe("bench", "try", "trinity-nano", *options, *where)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
