"""What a checkpoint says of its model: config.json, as transformers understands it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, DeepseekV3Config, PretrainedConfig

from localmoe.errors import UnsupportedModelError
from localmoe.weights.checkpoint_config import read_object

_NAME = "config.json"


@dataclass(frozen=True)
class ModelConfig:
    """A model's configuration, and that of its quantization apart from it."""

    config: PretrainedConfig
    quantization: Mapping[str, Any]
    """Empty: weights are as they are. localmoe decodes them itself: transformers never knows."""


def read_config(folder: Path) -> ModelConfig:
    """Read config.json of a checkpoint. No code of the checkpoint is ever run.

    Raises ModelNotFoundError, ModelFormatError, UnsupportedModelError.
    """
    values = read_object(str(folder / _NAME))
    try:
        config = _config_of(folder, values)
    except Exception as error:  # whatever the values make transformers stumble over
        raise UnsupportedModelError(
            f"transformers cannot use {folder / _NAME} (model_type "
            f"{values.get('model_type')!r}): {_first_line(error)}. A newer transformers may know "
            "the model: pip install --upgrade transformers"
        ) from error
    quantization = _taken_out(config)
    return ModelConfig(config, quantization)


def _config_of(folder: Path, values: dict[str, Any]) -> PretrainedConfig:
    if values.get("model_type") == "kimi_k2":
        # DeepSeek V3's model under a name of its own, which comes with code that is not run.
        return DeepseekV3Config(**{**values, "model_type": "deepseek_v3"})
    return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def _taken_out(config: PretrainedConfig) -> dict[str, Any]:
    """Remove what is said of quantization, from the parts of the model, too, and return it."""
    found: dict[str, Any] = {}
    parts: list[Any] = [config, getattr(config, "text_config", None)]
    for part in parts:
        said = getattr(part, "quantization_config", None)
        if said is None:
            continue
        found = found or (dict(said) if isinstance(said, Mapping) else dict(said.to_dict()))
        del part.quantization_config
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
