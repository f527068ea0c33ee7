"""Runs functions in one child process in which Triton interprets kernels instead of compiling them.

Triton decides that when it is imported, by the environment: so neither may happen in this process.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor


class Interpreter:
    """A process that lives until `close`."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, _begin)

    def run(self, name: str, *arguments: object) -> None:
        """Call module.function there. What it raises is raised here."""
        self._pool.submit(_call, name, *arguments).result()

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()


def _begin() -> None:
    assert "triton" not in sys.modules
    os.environ["TRITON_INTERPRET"] = "1"
    import torch

    torch.set_num_threads(1)


def _call(name: str, *arguments: object) -> None:
    module, function = name.split(".")
    getattr(importlib.import_module(module), function)(*arguments)
