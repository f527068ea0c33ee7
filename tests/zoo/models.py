"""All named models, and how to write one."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from pathlib import Path
from typing import Any

from zoo import families, layouts
from zoo.draft import Draft
from zoo.model import ZooModel

_FAMILIES: dict[str, dict[str, ZooModel]] = {
    module.name: importlib.import_module(f"{families.__name__}.{module.name}").MODELS
    for module in pkgutil.iter_modules(families.__path__)
}
"""What each module of `zoo.families` has in its MODELS."""

DENSE: dict[str, ZooModel] = _FAMILIES.pop("dense")
"""Models without experts, which always fit as a whole or not at all."""
ARCHITECTURES: dict[str, ZooModel] = {
    name: model for models in _FAMILIES.values() for name, model in models.items()
}
LAYOUTS: dict[str, ZooModel] = layouts.MODELS
MODELS: dict[str, ZooModel] = {**ARCHITECTURES, **LAYOUTS}
"""All Mixture-of-Experts models."""


def write(directory: Path, name: str, **changes: Any) -> Path:
    """Write the named model, with fields of its Shape changed, and return its first file."""
    model = {**DENSE, **MODELS}[name]
    draft = Draft(model.architecture, dataclasses.replace(model.shape, **changes))
    model.build(draft)
    return draft.write(directory, name)
