"""Tiny checkpoints, and no compiler at work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import pytest

import zoo_mlx
from zoo_torch.tokenizer import write_tokenizer

Folders = Callable[..., Path]


@pytest.fixture(scope="module", autouse=True)
def without_compiling() -> Iterator[None]:
    """MLX has a C++ compiler make kernels for the CPU: too slow for shapes that are used once."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Return a function from a type and a format to the folder of a checkpoint with tokenizer."""
    written: dict[tuple[str, str], Path] = {}

    def path(name: str, form: zoo_mlx.FormatName = "affine") -> Path:
        if (name, form) not in written:
            folder = zoo_mlx.write(tmp_path_factory.mktemp(name), name, form)
            write_tokenizer(folder)
            written[name, form] = folder
        return written[name, form]

    return path
