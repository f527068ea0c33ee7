"""What tests of the server share; tests/server/conftest.py has the fixture."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from localmoe.backends.base import Engine
from scripted import ScriptedEngine
from serving import HERMES, Served, served

Serve = Callable[..., Served]


@contextmanager
def serving() -> Iterator[Serve]:
    """Yield a function from an engine, or a script, and options to a server."""
    with ExitStack() as stack:

        def start(engine: Engine | Any, **options: Any) -> Served:
            if not isinstance(engine, Engine):
                engine = ScriptedEngine(script=engine, chat_template=HERMES)
            return stack.enter_context(served(engine, **options))

        yield start


def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so; a test that waits for ever fails by its patience."""
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came to be so")
