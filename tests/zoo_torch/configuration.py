"""A tiny configuration of a model type."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

from zoo_torch.shape import SIZES, Shape
from zoo_torch.types import TINY


def tiny_config(model_type: str) -> PretrainedConfig:
    """Return the configuration that TINY describes for this type."""
    shape = TINY[model_type]
    if not shape.text_type:
        return text_config(model_type, shape)
    inner = text_config(shape.text_type, Shape({**TINY[shape.text_type].config, **shape.config}))
    wrapper: Any = CONFIG_MAPPING[model_type]
    return wrapper(  # type: ignore[no-any-return]
        text_config=inner.to_dict(), vision_config=dict(shape.vision), **shape.wrapper
    )


def text_config(model_type: str, shape: Shape) -> PretrainedConfig:
    """Return a configuration with the fields of `shape`, and of SIZES where the class has them."""
    wanted: Any = CONFIG_MAPPING[model_type]
    fields = wanted().to_dict()
    common = {name: value for name, value in SIZES.items() if name in fields}
    return wanted(**{**common, **shape.config})  # type: ignore[no-any-return]
