"""Tiny checkpoints as mlx-lm writes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.utils import _get_classes, save_config, save_model

from zoo_mlx.types import FormatName, tiny_config

_GROUP = 32
_SWITCHES = (".switch_mlp.", ".experts.")
_PARTS = ("gate", "up", "down")


def write(
    folder: Path,
    model_type: str,
    form: FormatName = "float32",
    *,
    seed: int = 0,
    n_layers: int | None = None,
) -> Path:
    """Write config.json and the weights of this type into `folder`, and return it.

    `form` is that of the experts, in which MLX's CPU can multiply all but bfloat16; the rest is
    float32.
    """
    config = tiny_config(model_type, n_layers)
    model_class, arguments = _get_classes(config)
    model = model_class(arguments.from_dict(config))
    model.eval()
    _randomize(model, seed)
    if form == "bfloat16":
        model.set_dtype(mx.bfloat16)
    elif form != "float32":
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


def take_apart(folder: Path, names: Mapping[str, str]) -> None:
    """Store a float32 checkpoint as it is published: a tensor for each expert, in three files.

    `names` are those that the experts' matrices have there, by those that mlx-lm gives them.
    """
    tensors: dict[str, mx.array] = {}
    for name, array in _taken_out(folder).items():
        switch = next((each for each in _SWITCHES if each in name), None)
        if switch is None:
            tensors[name] = array
            continue
        stem, rest = name.split(switch)
        matrix, kind = rest.split(".")
        for expert in range(array.shape[0]):
            tensors[f"{stem}.experts.{expert}.{names[matrix]}.{kind}"] = array[expert]
    files = [f"model-0000{n + 1}-of-00003.safetensors" for n in range(3)]
    in_file = {name: files[place % 3] for place, name in enumerate(tensors)}
    for file in files:
        part = {name: array for name, array in tensors.items() if in_file[name] == file}
        mx.save_safetensors(str(folder / file), part, {"format": "mlx"})
    index = {"metadata": {}, "weight_map": in_file}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def in_two_files(folder: Path, first: Callable[[str], bool]) -> tuple[Path, Path]:
    """Store a checkpoint in two files: the tensors that `first` takes, and the others."""
    tensors = _taken_out(folder)
    files = tuple(folder / f"model-0000{n + 1}-of-00002.safetensors" for n in range(2))
    in_file = {name: files[0 if first(name) else 1] for name in tensors}
    for file in files:
        part = {name: array for name, array in tensors.items() if in_file[name] == file}
        mx.save_safetensors(str(file), part, {"format": "mlx"})
    index = {"metadata": {}, "weight_map": {name: file.name for name, file in in_file.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return files[0], files[1]


def turn_round(folder: Path) -> None:
    """Store a Llama 4 as it is published: gate and up in one, all matrices the other way round."""
    tensors = _taken_out(folder)
    for name in [name for name in tensors if name.endswith("experts.gate_proj.weight")]:
        stem = name.removesuffix(".gate_proj.weight")
        gate, up, down = (tensors.pop(f"{stem}.{each}_proj.weight") for each in _PARTS)
        tensors[f"{stem}.gate_up_proj"] = mx.concatenate([gate, up], axis=1).swapaxes(1, 2)
        tensors[f"{stem}.down_proj"] = down.swapaxes(1, 2)
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, {"format": "mlx"})


def _taken_out(folder: Path) -> dict[str, mx.array]:
    """Return the tensors of a checkpoint in one file, and remove it."""
    path = folder / "model.safetensors"
    tensors: Any = mx.load(str(path))
    mx.eval(tensors)
    path.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    found: dict[str, mx.array] = tensors
    return found
