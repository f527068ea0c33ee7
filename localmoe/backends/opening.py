"""Which engine runs a model, and how it is opened: what it needs is imported then, not before."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from localmoe.backends.base import Engine, MeasuredEngine
from localmoe.errors import EngineError, SettingsError
from localmoe.settings import EngineName, Progress, Settings
from localmoe.weights.checkpoint_kind import is_mlx, is_safetensors

Open = Callable[[Path, Settings, Progress | None], MeasuredEngine]


TORCH_PACKAGES = ("torch", "transformers", "safetensors")
"""What the torch engine needs beside localmoe."""
INSTALL_TORCH = "pip install 'localmoe[torch]'"
INSTALL_MLX = "pip install 'localmoe[mlx]'"


def missing_torch_packages() -> list[str]:
    """Return those that are not installed; none of them is imported."""
    return [name for name in TORCH_PACKAGES if importlib.util.find_spec(name) is None]


def engine_name(path: Path | None, wanted: EngineName | None = None) -> EngineName:
    """Return the engine for a model: the one that is wanted, or the one for files of its kind."""
    if wanted:
        return wanted
    if path is None or not is_safetensors(path):
        return "llama"
    return "mlx" if is_apple_silicon() or is_mlx(path) else "torch"


def is_apple_silicon() -> bool:
    """Whether MLX has a GPU of Apple's here."""
    return platform.system() == "Darwin" and platform.machine() == "arm64"


@contextmanager
def opening(path: Path | None, wanted: EngineName | None = None) -> Iterator[Open]:
    """Begin what opening this model needs; yield the function that opens it, once.

    Other imports may go on meanwhile. Raises EngineError where the engine is not installed.
    """
    name = engine_name(path, wanted)
    if name != "llama":
        yield _alone(name, _torch_load()) if name == "torch" else _mlx_load()
        return
    from localmoe.backends.llama.dry_run import DryRunChild

    with DryRunChild() as child:

        def open_llama(path: Path, settings: Settings, progress: Progress | None) -> MeasuredEngine:
            from localmoe.backends.llama.load import load

            return load(path, settings, progress, child)

        yield _alone(name, open_llama)


def open_engine(path: Path, settings: Settings, progress: Progress | None = None) -> Engine:
    """Load a model with the engine for it. Raises LocalMoeError."""
    with opening(path, settings.engine) as open_it:
        return open_it(path, settings, progress)


def follow_rank(own: Settings) -> None:
    """Be one of several ranks, not the first, until that ends. Raises LocalMoeError."""
    _mlx_load()
    from localmoe.backends.mlx.follower import follow

    follow(own)


def _alone(name: EngineName, load: Open) -> Open:
    """Return a function that opens a model in this process, and in no other."""

    def open_it(path: Path, settings: Settings, progress: Progress | None) -> MeasuredEngine:
        if settings.ranks:
            raise SettingsError(
                f"{path} is run by the engine {name}, and only mlx runs a model on several "
                "machines: leave --hosts out, or use --engine mlx with a safetensors checkpoint"
            )
        return load(path, settings, progress)

    return open_it


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


def _mlx_load() -> Open:
    try:
        import localmoe.backends.mlx.load as mlx_load
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("mlx", "mlx_lm", "transformers"):
            raise
        raise EngineError(
            f"the MLX engine needs the package {error.name}, which is not installed: {INSTALL_MLX}"
        ) from error
    except ValueError as error:  # mlx_lm sets limits of the process when it is imported
        raise EngineError(
            f"mlx_lm cannot be imported: {error}. It wants to open 4096 files (ulimit -Hn)"
        ) from error

    def open_mlx(path: Path, settings: Settings, progress: Progress | None) -> MeasuredEngine:
        if settings.ranks:
            from localmoe.backends.mlx.ranked_engine import open_ranked

            return open_ranked(path, settings, progress)
        return mlx_load.load(path, settings, progress)

    return open_mlx
