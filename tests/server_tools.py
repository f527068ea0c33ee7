"""What tests of the server share; tests/server/conftest.py has the fixture."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from localmoe.backends.base import Engine
from scripted import ScriptedEngine
from serving import HERMES, Served, served

Serve = Callable[..., Served]


class EndlessEngine(ScriptedEngine):
    """Says 20 tokens of an answer that has `word` in its prompt, then stands still until it is
    interrupted, however fast or slow the machine is."""

    def __init__(self, script: Callable[[str], str], word: str) -> None:
        self.stands = threading.Event()
        """Set once it stands still."""
        self._halt, self._word = threading.Event(), word
        super().__init__(script=script, chat_template=HERMES, pause=self._halt)
        self._halt.set()

    def _wait(self) -> None:
        super()._wait()
        if self._n_said >= 20 and self._word in self.prompts[-1]:
            self._halt.clear()
            self.stands.set()
            try:
                super()._wait()
            finally:
                self._halt.set()


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
