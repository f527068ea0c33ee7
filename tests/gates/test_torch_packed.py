"""G19: with kernels for packed experts, too, slots change no bit; interpreted, on the processor."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import zoo_torch
from interpreted import Interpreter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None, reason="triton has no wheel for this system"
    ),
]


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Interpreter]:
    """Return the process in which kernels are interpreted."""
    found = Interpreter()
    yield found
    found.close()


@pytest.mark.parametrize("name", ["afmoe", "gpt_oss"])
def test_g19_packed_experts(interpreter: Interpreter, tmp_path: Path, name: str) -> None:
    zoo_torch.write(tmp_path, name, torch.bfloat16)
    zoo_torch.write_tokenizer(tmp_path)
    interpreter.run("packed_checks.check_engine", tmp_path)
