"""Which engine runs a model, and how it is opened: what it needs is imported then, not before."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from localmoe.backends.base import Engine, MeasuredEngine
from localmoe.errors import EngineError
from localmoe.settings import EngineName, Progress, Settings
from localmoe.weights.checkpoint_kind import is_safetensors

Open = Callable[[Path, Settings, Progress | None], MeasuredEngine]


TORCH_PACKAGES = ("torch", "transformers", "safetensors")
"""What the torch engine needs beside localmoe."""
INSTALL_TORCH = "pip install 'localmoe[torch]'"


def missing_torch_packages() -> list[str]:
    """Return those that are not installed; none of them is imported."""
    return [name for name in TORCH_PACKAGES if importlib.util.find_spec(name) is None]


def engine_name(path: Path | None, wanted: EngineName | None = None) -> EngineName:
    """Return the engine for a model: the one that is wanted, or the one for files of its kind."""
    if wanted:
        return wanted
    return "torch" if path is not None and is_safetensors(path) else "llama"


@contextmanager
def opening(path: Path | None, wanted: EngineName | None = None) -> Iterator[Open]:
    """Begin what opening this model needs; yield the function that opens it, once.

    Other imports may go on meanwhile. Raises EngineError where the engine is not installed.
    """
    if engine_name(path, wanted) == "torch":
        yield _torch_load()
        return
    from localmoe.backends.llama.dry_run import DryRunChild

    with DryRunChild() as child:

        def open_llama(path: Path, settings: Settings, progress: Progress | None) -> MeasuredEngine:
            from localmoe.backends.llama.load import load

            return load(path, settings, progress, child)

        yield open_llama


def open_engine(path: Path, settings: Settings, progress: Progress | None = None) -> Engine:
    """Load a model with the engine for it. Raises LocalMoeError."""
    with opening(path, settings.engine) as open_it:
        return open_it(path, settings, progress)


def _torch_load() -> Open:
    try:
        import localmoe.backends.torch.load as torch_load
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in TORCH_PACKAGES:
            raise
        raise EngineError(
            f"safetensors checkpoints need the package {error.name}, which is not installed: "
            f"{INSTALL_TORCH} (on a machine without a GPU, install torch's CPU build "
            "first: https://pytorch.org/get-started/locally)"
        ) from error
    return torch_load.load
