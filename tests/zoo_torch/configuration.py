"""A tiny configuration of a model type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

from zoo_torch.shape import INPUT_SIZES, SIZES, Shape
from zoo_torch.types import TINY


def tiny_config(model_type: str) -> PretrainedConfig:
    """Return the configuration that TINY describes for this type."""
    shape = TINY[model_type]
    if not shape.text_type:
        return _filled(CONFIG_MAPPING[shape.read_as or model_type], SIZES, shape.config)
    whole: Any = CONFIG_MAPPING[model_type]
    inner = {**TINY.get(shape.text_type, Shape()).config, **shape.config}
    text = _filled(CONFIG_MAPPING[shape.text_type], SIZES, inner)
    parts: dict[str, Any] = {"text_config": text.to_dict()}
    default = whole()
    for name, own in (("vision_config", {}), ("audio_config", shape.audio)):
        part = getattr(default, name, None)
        if part is not None:
            parts[name] = _filled(type(part), INPUT_SIZES, own).to_dict()
    config: PretrainedConfig = whole(**parts, **shape.wrapper)
    return config


def _filled(
    wanted: Any, sizes: Mapping[str, object], own: Mapping[str, object]
) -> PretrainedConfig:
    """Return a configuration with `own` fields, and of `sizes` those that the class has."""
    fields = wanted().to_dict()
    common = {name: value for name, value in sizes.items() if name in fields}
    config: PretrainedConfig = wanted(**{**common, **own})
    return config
