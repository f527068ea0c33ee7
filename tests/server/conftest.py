"""The fixture of all tests of the server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server_tools import Serve, serving


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return a function from an engine, or a script, and options to a server."""
    with serving() as start:
        yield start
