"""Commands with a safetensors checkpoint: the torch engine behind the same options."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import zoo_torch

Run = Callable[..., subprocess.CompletedProcess[str]]
SHORT = ("--max-tokens", "6", "--temperature", "0", "--context", "128", "--no-profile")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint in several shards, with tokenizer and template."""
    path = tmp_path_factory.mktemp("afmoe")
    zoo_torch.write(path, "afmoe", max_shard_size="100KB")
    zoo_torch.write_tokenizer(path)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Run:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("LOCALMOE_")}

    def call(*args: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "localmoe", *args],
            env={**kept, "LOCALMOE_STATE": str(tmp_path), "COLUMNS": "100", **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=120,
        )

    return call


def test_a_checkpoint_is_run(run: Run, folder: Path, tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    found = run("run", str(folder), "Hello", *SHORT, "--stats", str(stats))
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout
    assert json.loads(stats.read_text())["tokens"] == 6


def test_what_cannot_be_is_one_line(run: Run, folder: Path) -> None:
    for arguments, reason in (
        (("--memory", "40MiB"), "Use --memory"),
        (("--engine", "llama"), ".gguf"),
    ):
        found = run("run", str(folder), *arguments, "Hello")
        assert (found.returncode, found.stdout) == (1, "")
        assert found.stderr.startswith("localmoe: ")
        assert found.stderr.count("\n") == 1
        assert reason in found.stderr


def test_it_is_measured_like_any_other(
    run: Run, folder: Path, unexplained: Callable[[Any], list[str]]
) -> None:
    index = folder / "model.safetensors.index.json"
    small = ("--tokens", "12", "--prompt-tokens", "8", "--context", "64", "--slots", "6")
    found = run("bench", "decode", str(index), "--engine", "torch", *small, "--json")
    assert found.returncode == 0, found.stderr
    answer = json.loads(found.stdout)
    assert (answer["slots"], answer["extra"]["callback"]) == (6, "Python")
    assert 0 < answer["hit_rate"] < 1
    assert unexplained(answer) == []


def test_a_missing_package_is_told(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "transformers.py").write_text(
        "raise ModuleNotFoundError('none', name='transformers')\n"
    )
    found = run("run", str(folder), "Hello", PYTHONPATH=str(tmp_path))
    assert found.returncode == 1
    assert "pip install 'localmoe[torch]'" in found.stderr
