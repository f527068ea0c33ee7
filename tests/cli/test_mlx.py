"""Commands with an MLX checkpoint: the MLX engine behind the same options."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import zoo_mlx
from localmoe.backends import opening
from zoo_torch.tokenizer import write_tokenizer

Run = Callable[..., subprocess.CompletedProcess[str]]
SHORT = ("--max-tokens", "6", "--temperature", "0", "--context", "128", "--no-profile")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a quantized checkpoint with tokenizer and template."""
    path = zoo_mlx.write(tmp_path_factory.mktemp("qwen"), "qwen3_moe", "affine")
    write_tokenizer(path)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Run:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("LOCALMOE_")}

    def call(*args: str, **more: str) -> subprocess.CompletedProcess[str]:
        own = {"LOCALMOE_STATE": str(tmp_path), "COLUMNS": "100", "MLX_DISABLE_COMPILE": "1"}
        return subprocess.run(
            [sys.executable, "-m", "localmoe", *args],
            env={**kept, **own, **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=120,
        )

    return call


def test_what_mlx_quantized_is_run_by_it(run: Run, folder: Path, tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    found = run("run", str(folder), "Hello", *SHORT, "--stats", str(stats))
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout
    assert json.loads(stats.read_text())["tokens"] == 6


def test_it_is_measured_like_any_other(
    run: Run, folder: Path, unexplained: Callable[[Any], list[str]]
) -> None:
    path = folder / "model.safetensors"
    small = ("--tokens", "12", "--prompt-tokens", "8", "--context", "64", "--slots", "6")
    found = run("bench", "decode", str(path), "--engine", "mlx", *small, "--json")
    assert found.returncode == 0, found.stderr
    answer = json.loads(found.stdout)
    assert (answer["slots"], answer["extra"]["callback"]) == (6, "Python")
    assert 0 < answer["hit_rate"] < 1
    assert unexplained(answer) == []


def test_a_missing_package_is_told(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mlx_lm.py").write_text("raise ModuleNotFoundError('none', name='mlx_lm')\n")
    found = run("run", str(folder), "Hello", PYTHONPATH=f"{tmp_path}:{os.getcwd()}")
    assert (found.returncode, found.stderr.count("\n")) == (1, 1)
    assert "pip install 'localmoe[mlx]'" in found.stderr


def test_each_checkpoint_has_its_engine(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = zoo_mlx.write(tmp_path, "qwen3_moe")
    assert opening.engine_name(folder) == "mlx"
    assert opening.engine_name(folder / "model.safetensors") == "mlx"
    assert opening.engine_name(folder, "torch") == "torch"
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    assert opening.engine_name(plain) == "torch"
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert opening.engine_name(plain) == "mlx"
    assert opening.engine_name(Path("model.gguf")) == opening.engine_name(None) == "llama"


def test_nothing_of_mlx_is_imported_before_it_is_needed() -> None:
    program = "import localmoe, localmoe.backends.opening, sys; print('mlx' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
