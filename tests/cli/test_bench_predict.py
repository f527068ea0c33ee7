"""`localmoe bench predict` as a command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ZooModel = Callable[[str], Path]
SHORT = ("--tokens", "16", "--context", "64", "--threads", "1")


def predict(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "localmoe", "bench", "predict", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_json_of_a_model_is_explained_and_complete(
    zoo_model: ZooModel, unexplained: Callable[[Any], list[str]]
) -> None:
    done = predict(str(zoo_model("qwen3moe")), *SHORT, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert unexplained(answer) == []
    assert list(answer["predictors"]) == [
        "next_layer", "layer_after_next", "previous_token", "frequency", "combined",
    ]  # fmt: skip
    assert (answer["tokens"], answer["scored_tokens"], answer["unknown_layers"]) == (16, 12, [])
    score = answer["predictors"]["next_layer"]
    assert len(score["layer_recall"]) == len(answer["layers"])
    assert score["layer_recall"][0] == 0  # nothing comes before the first layer
    assert 0 < score["recall"] <= 1
    assert len(score["rank_recall"]) == answer["experts_used"] + 2
    assert score["rank_recall"] == sorted(score["rank_recall"])


def test_people_get_a_table_and_a_text_is_decoded(zoo_model: ZooModel, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the same words again and again " * 20)
    done = predict(str(zoo_model("qwen3moe")), *SHORT, "--text", str(text))
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert any(line.startswith("next layer ") for line in done.stdout.splitlines())
    assert "12 tokens were scored" in done.stdout


def test_a_recorded_trace_is_scored_without_a_model(tmp_path: Path) -> None:
    path = tmp_path / "trace.npz"
    routing = np.tile(np.array([[0, 1], [2, 5]], np.int16), (20, 1, 1))
    np.savez(path, routing=routing, layers=np.array([3, 4]))
    answer = json.loads(predict(str(path), "--json").stdout)
    assert answer["predictors"]["previous_token"]["recall"] == 1.0
    assert (answer["layers"], answer["experts_per_layer"]) == ([3, 4], 6)


def test_errors_are_one_line(zoo_model: ZooModel, tmp_path: Path) -> None:
    for arguments, message in (
        ((str(tmp_path / "none.npz"),), "there is no file"),
        ((str(zoo_model("llama")), *SHORT), "a dense model has no experts"),
        ((str(zoo_model("qwen3moe")), *SHORT, "--text", str(tmp_path)), "cannot read the text"),
    ):
        done = predict(*arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
