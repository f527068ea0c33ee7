"""A tiny configuration of a model type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

from zoo_torch.shape import SIZES, VISION_SIZES, Shape
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
    seeing = whole().vision_config
    if seeing is not None:
        parts["vision_config"] = _filled(type(seeing), VISION_SIZES, shape.vision).to_dict()
    return whole(**parts, **shape.wrapper)  # type: ignore[no-any-return]


def _filled(wanted: Any, sizes: Mapping[str, object], own: Mapping[str, object]) -> Any:
    """Return a configuration with `own` fields, and of `sizes` those that the class has."""
    fields = wanted().to_dict()
    return wanted(**{**{k: v for k, v in sizes.items() if k in fields}, **own})
