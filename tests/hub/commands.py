"""Commands against a hub that was made here: how they end, and what they leave."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

Localmoe = Callable[..., subprocess.CompletedProcess[str]]
"""From arguments, and changes of the environment, to how the command ended."""


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """Return the message of a command that failed as it should: the last line, no traceback."""
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def blobs(home: dict[str, str]) -> list[str]:
    return sorted(p.name for p in Path(home["HF_HOME"]).glob("hub/*/blobs/*"))
