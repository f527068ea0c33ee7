"""What tests of commands share: the page that explains their figures, and a hub of our own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hub import HubServer
from hub.commands import Localmoe

PAGE = Path(__file__).parents[2] / "docs" / "figures.md"


@pytest.fixture(scope="session")
def unexplained() -> Callable[[Any], list[str]]:
    """Return a function that lists the keys of an answer which docs/figures.md does not have."""
    page = PAGE.read_text()
    return lambda answer: sorted(key for key in keys(answer) if f"`{key}`" not in page)


def keys(value: Any) -> Iterator[str]:
    """Yield every name in an answer; numbers of tokens are none."""
    if isinstance(value, dict):
        yield from (key for key in value if not key.isdigit())
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, (dict, list)):
            yield from keys(inner)


@pytest.fixture
def server() -> Iterator[HubServer]:
    found = HubServer()
    yield found
    found.close()


@pytest.fixture
def home(tmp_path: Path, server: HubServer) -> dict[str, str]:
    """The environment of a machine that knows only our hub."""
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith(("HF_", "LOCALMOE_"))},
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_ETAG_TIMEOUT": "3",
        "LOCALMOE_CACHE": str(tmp_path / "cache"),
        "TMPDIR": str(tmp_path),
        "LOCALMOE_STATE": str(tmp_path / "state"),
    }


@pytest.fixture
def localmoe(home: dict[str, str]) -> Localmoe:
    def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "localmoe", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            env={**home, **changes},
        )

    return run
