"""Tiny checkpoints as transformers writes and reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from zoo_torch.configuration import tiny_config
from zoo_torch.shape import EXPERTS
from zoo_torch.types import TINY
from zoo_torch.weights import randomize

Implementation = Literal["eager", "grouped_mm"]


def write(
    folder: Path,
    model_type: str,
    dtype: torch.dtype = torch.bfloat16,
    *,
    seed: int = 0,
    max_shard_size: int | str = "5GB",
) -> Path:
    """Write config.json and the weights of this type into `folder`, and return it.

    Tensors get the names of published checkpoints: `save_pretrained` takes fused experts apart
    again. With a small `max_shard_size` (bytes, or text such as "200KB") there are several files
    and an index.
    """
    shape = TINY[model_type]
    config = tiny_config(model_type)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _class_of(shape.architecture, config)._from_config(config, dtype=dtype)
    randomize(model, EXPERTS, shape.gains, seed)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    if shape.read_as:
        _say_type(folder / "config.json", model_type)
    return folder


def stock(path: Path, dtype: torch.dtype, implementation: Implementation) -> PreTrainedModel:
    """Return the model of a checkpoint as transformers alone runs it, in eval mode."""
    config = _config_of(path)
    # By its name, the default is refused where the class's own file has no experts, if the ones
    # that it uses have.
    options = {} if implementation == "grouped_mm" else {"experts_implementation": implementation}
    model = _class_of(config.architectures[0], config).from_pretrained(
        path, config=config, dtype=dtype, **options
    )
    # Weights may be views of the mapped file, at any multiple of 8 bytes: what a product of float32
    # is, to the last bit, depends on that.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model.eval()


def _config_of(path: Path) -> Any:
    fields = json.loads((path / "config.json").read_text())
    read_as = TINY[fields["model_type"]].read_as
    if not read_as:
        return AutoConfig.from_pretrained(path)
    # Left with its own type, the configuration would have no table of names for the weights.
    return CONFIG_MAPPING[read_as](**{**fields, "model_type": read_as})


def _class_of(architecture: str, config: Any) -> Any:
    if architecture:
        return getattr(transformers, architecture)
    return AutoModelForCausalLM._model_mapping[type(config)]


def _say_type(path: Path, model_type: str) -> None:
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "model_type": model_type}, indent=2) + "\n")
