"""A checkpoint as mlx-lm builds it, with nothing of it read but headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
from mlx import nn
from mlx_lm.utils import load_model

from localmoe.errors import ModelNotFoundError, UnsupportedModelError
from localmoe.weights.safetensors import StoredTensor, read_tensors


@dataclass(frozen=True)
class Checkpoint:
    """A model whose parameters are not evaluated yet, and what is stored."""

    folder: Path
    model: nn.Module
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    @property
    def model_type(self) -> str:
        """The type that config.json names."""
        return str(self.config["model_type"])

    def weights(self) -> dict[str, mx.array]:
        """Return all tensors by name, none of them evaluated."""
        found: dict[str, mx.array] = {}
        for path in sorted({tensor.extent.path for tensor in self.tensors.values()}):
            stored: Any = mx.load(path)
            found.update(stored)
        return found


def open_checkpoint(path: Path) -> Checkpoint:
    """Check the headers of a checkpoint, and have mlx-lm build its model. Raises ModelError.

    `path` is its folder, or a file in it. No code of the checkpoint is ever run.
    """
    folder = path if path.is_dir() else path.parent
    tensors = read_tensors(path)
    _check_names(folder, tensors)
    try:
        model, config = load_model(folder, lazy=True)
    except FileNotFoundError as error:
        raise ModelNotFoundError(
            f"{folder} should hold config.json beside the weights: {error}. Pull it again"
        ) from error
    except Exception as error:  # whatever a configuration makes mlx-lm stumble over
        raise UnsupportedModelError(
            f"mlx-lm {mlx_lm.__version__} cannot use the checkpoint {folder}: "
            f"{str(error).strip()[:400] or type(error).__name__}"
        ) from error
    return Checkpoint(folder, model, config, tensors)


def _check_names(folder: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Raise unless mlx-lm would read the very files whose headers were checked."""
    checked = {Path(tensor.extent.path).name for tensor in tensors.values()}
    read = {each.name for each in folder.glob("model*.safetensors")}
    if checked != read:
        raise UnsupportedModelError(
            f"mlx-lm reads the files model*.safetensors of {folder}, which are "
            f"{', '.join(sorted(read)) or 'none'}; the checkpoint is in "
            f"{', '.join(sorted(checked))}"
        )
