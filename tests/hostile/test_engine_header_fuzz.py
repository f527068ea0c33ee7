"""A damaged file gives a clear error or a run with finite logits: no crash, no hang."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
TRUNCATIONS = FLIPS = 50
RAN, REFUSED = 0, 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3moe", "afmoe", "deepseek2", "gpt-oss"])
def test_damaged_headers(zoo_model: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """200 cuts and 200 changed bytes in all, over four architectures."""
    arguments = [zoo_model(name), tmp_path, len(name), TRUNCATIONS, FLIPS]
    done = subprocess.run(
        [sys.executable, TESTS / "header_fuzz.py", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(TESTS.parent), "GGML_NO_BACKTRACE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes = json.loads(done.stdout)
    assert len(outcomes) == 1 + TRUNCATIONS + FLIPS
    assert outcomes[0][2] == RAN, outcomes[0]
    assert [case for case in outcomes if case[2] not in (RAN, REFUSED)] == []
    ends = Counter((kind, status) for kind, _, status, _ in outcomes[1:])
    assert ends["cut", REFUSED] == TRUNCATIONS
    assert ends["flip", REFUSED] > 0
    assert ends["flip", RAN] > 0
    silent = [case for case in outcomes if case[2] == REFUSED and len(case[3]) < 20]
    assert silent == []
