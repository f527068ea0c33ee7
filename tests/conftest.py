"""Fixtures for all tests. Append only; one block per subject."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import zoo
from localmoe.cache.direct_file import DirectFile

# --- tiny generated models -----------------------------------------------------------------------


@pytest.fixture(scope="session")
def zoo_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a name in zoo.MODELS to its first file, written once per session."""
    directory = tmp_path_factory.mktemp("zoo")
    written: dict[str, Path] = {}

    def path(name: str) -> Path:
        if name not in written:
            written[name] = zoo.write(directory, name)
        return written[name]

    return path


# --- the demo model -------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def demo_model_path(pytestconfig: pytest.Config) -> Path:
    """Return the demo model, built once and kept in pytest's cache folder between runs."""
    from localmoe.demo.builder import demo_model

    assert pytestconfig.cache is not None
    return demo_model(pytestconfig.cache.mkdir("demo-model"))


# --- torch ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """Have torch compute in one thread: for many small matrices more only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- Ctrl-C ---------------------------------------------------------------------------------------


@pytest.fixture
def python_handler() -> Iterator[None]:
    """Python's own handler of Ctrl-C: a shell's background jobs begin with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


# --- reads that fail ------------------------------------------------------------------------------


@pytest.fixture
def reads_by_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have workers do all reads of experts: a ring does not ask a file's `_preadv`."""
    monkeypatch.setattr(DirectFile, "descriptor", None)
