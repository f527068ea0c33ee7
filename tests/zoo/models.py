"""All named models, and how to write one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from zoo import layouts
from zoo.draft import Draft
from zoo.families import (
    afmoe,
    bailing,
    classic,
    deepseek,
    deepseek4,
    deepseek_sparse,
    dense,
    glm,
    glm_next,
    google,
    granite,
    hy,
    hybrid,
    hybrid_latent,
    llama,
    mamba,
    minimax,
    nemotron,
    openai,
    others,
    qwen,
    qwen4exp,
    qwen_hybrid,
    tencent,
    windowed,
)
from zoo.model import ZooModel

_FAMILIES = (
    afmoe,
    bailing,
    classic,
    deepseek,
    deepseek4,
    deepseek_sparse,
    glm,
    glm_next,
    google,
    granite,
    hy,
    hybrid,
    hybrid_latent,
    llama,
    mamba,
    minimax,
    nemotron,
    openai,
    others,
    qwen,
    qwen4exp,
    qwen_hybrid,
    tencent,
    windowed,
)

ARCHITECTURES: dict[str, ZooModel] = {
    name: model for family in _FAMILIES for name, model in family.MODELS.items()
}
LAYOUTS: dict[str, ZooModel] = layouts.MODELS
MODELS: dict[str, ZooModel] = {**ARCHITECTURES, **LAYOUTS}
"""All Mixture-of-Experts models."""
DENSE: dict[str, ZooModel] = dense.MODELS
"""Models without experts, which always fit as a whole or not at all."""


def write(directory: Path, name: str, **changes: Any) -> Path:
    """Write the named model, with fields of its Shape changed, and return its first file."""
    model = {**DENSE, **MODELS}[name]
    draft = Draft(model.architecture, dataclasses.replace(model.shape, **changes))
    model.build(draft)
    return draft.write(directory, name)
