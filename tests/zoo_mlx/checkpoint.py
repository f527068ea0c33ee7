"""Tiny checkpoints as mlx-lm writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.utils import _get_classes, save_config, save_model

from zoo_mlx.types import FormatName, tiny_config

_GROUP = 32


def write(folder: Path, model_type: str, form: FormatName = "float32", *, seed: int = 0) -> Path:
    """Write config.json and the weights of this type into `folder`, and return it.

    `form` is that of the experts; the rest is float32.
    """
    config = tiny_config(model_type)
    model_class, arguments = _get_classes(config)
    model = model_class(arguments.from_dict(config))
    model.eval()
    _randomize(model, seed)
    if form != "float32":
        nn.quantize(model, _GROUP, 4, mode=form, class_predicate=_is_expert)
        config["quantization"] = {"group_size": _GROUP, "bits": 4, "mode": form}
    save_model(folder, model)
    save_config(config, folder / "config.json")
    return folder


def _is_expert(path: str, module: Any) -> bool:
    return hasattr(module, "num_experts") and hasattr(module, "to_quantized")


def _randomize(model: Any, seed: int) -> None:
    """Give every parameter values that keep logits far from even, and routers undecided."""
    source = np.random.default_rng(seed)
    found = []
    for name, array in tree_flatten(model.parameters()):
        if not mx.issubdtype(array.dtype, mx.floating):
            continue
        values = source.standard_normal(array.shape, np.float32)
        if array.ndim > 1:
            values *= 0.15
        else:
            ones = bool(mx.all(array == 1).item())
            values = values * 0.05 + (1.0 if ones else 0.0)
        found.append((name, mx.array(values)))
    model.update(tree_unflatten(found))
    mx.eval(model.parameters())
