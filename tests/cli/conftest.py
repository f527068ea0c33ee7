"""What tests of commands share: the page that explains their figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

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
