"""localmoe: run Mixture-of-Experts models that are larger than memory.

import localmoe

with localmoe.load("model.gguf", localmoe.Settings(memory_bytes=8 << 30)) as engine:
    tokens = engine.tokenizer.encode("Once upon a time")
    logits = engine.decode(tokens)  # float32 [1, V]
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from localmoe.errors import (
    BudgetError,
    ChatError,
    ConstraintError,
    ContextFullError,
    EngineError,
    EngineVersionError,
    ExpertReadError,
    InterruptedDecodeError,
    LocalMoeError,
    LostRankError,
    ModelError,
    ModelFormatError,
    ModelNotFoundError,
    SettingsError,
    UnsupportedModelError,
)
from localmoe.planning.plan import MemoryPlan
from localmoe.settings import Progress, Settings

if TYPE_CHECKING:
    from localmoe.backends.base import Engine

__version__ = "0.1.0"

__all__ = [
    "BudgetError",
    "ChatError",
    "ConstraintError",
    "ContextFullError",
    "Engine",
    "EngineError",
    "EngineVersionError",
    "ExpertReadError",
    "InterruptedDecodeError",
    "LocalMoeError",
    "LostRankError",
    "MemoryPlan",
    "ModelError",
    "ModelFormatError",
    "ModelNotFoundError",
    "Progress",
    "Settings",
    "SettingsError",
    "UnsupportedModelError",
    "load",
]


def __getattr__(name: str) -> object:
    # The protocol needs numpy, and `localmoe --help` should not wait for it.
    if name == "Engine":
        from localmoe.backends.base import Engine

        return Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load(
    path: str | Path, settings: Settings | None = None, progress: Progress | None = None
) -> Engine:
    """Load a model and return its engine; close it, or use it in a `with` block.

    `path`: a GGUF file, any shard of a split one, or a directory with one model; or a safetensors
    checkpoint. `progress` is called with (stage, done, total). Raises LocalMoeError.
    """
    from localmoe.backends.opening import open_engine

    return open_engine(Path(path), settings or Settings(), progress)
