"""A model without its routed experts: their parameters are taken out before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from localmoe.backends.torch.adapters import find_experts
from localmoe.errors import UnsupportedModelError

_FIRST = ("gate_up_proj", "up_proj", "gate_proj")
_SECOND = ("down_proj",)


@dataclass(frozen=True)
class ExpertModule:
    """Where routed experts of one layer are asked for."""

    layer: int
    """The model's own number; where layers have several such modules, counted over the modules."""
    name: str
    module: nn.Module
    parts: tuple[tuple[str, ...], ...]
    """Names of parameters: what leads to the activation, with its bias, and what leads back."""


@dataclass(frozen=True)
class Stripped:
    """What was taken out of a model."""

    modules: tuple[ExpertModule, ...]
    shapes: Mapping[str, tuple[int, ...]]
    """Of each parameter, [E, ...], by its full name."""


def strip(model: PreTrainedModel) -> Stripped:
    """Take the parameters of all routed experts out of a model on the meta device.

    Raises UnsupportedModelError for a model whose experts would not be asked for, or are of a form
    that is not known.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    modules = []
    for name, (module, owner) in find_experts(model).items():
        own = dict(owner.named_parameters(recurse=False))
        for each, parameter in own.items():
            shapes[f"{name}.{each}"] = tuple(parameter.shape)
            delattr(owner, each)
        asked: Any = module
        asked._is_hf_initialized = True  # else the missing parameters would be initialised
        modules.append(ExpertModule(_layer_of(name), name, module, _parts_of(name, set(own))))
    _check_none_left(model)
    modules.sort(key=lambda one: one.layer)
    if len({one.layer for one in modules}) < len(modules):
        modules = [replace(one, layer=number) for number, one in enumerate(modules)]
    return Stripped(tuple(modules), shapes)


def _parts_of(name: str, own: set[str]) -> tuple[tuple[str, ...], ...]:
    parts = []
    for candidates in (_FIRST, _SECOND):
        matrices = [each for each in candidates if each in own]
        if len(matrices) != 1:
            raise UnsupportedModelError(
                f"the experts {name} have the parameters {', '.join(sorted(own))}, which are not "
                "of a form that is known here"
            )
        bias = f"{matrices[0]}_bias"
        parts.append((matrices[0], bias) if bias in own else (matrices[0],))
    if unknown := own - {each for part in parts for each in part}:
        raise UnsupportedModelError(
            f"the experts {name} have parameters that are not known here: "
            f"{', '.join(sorted(unknown))}"
        )
    return tuple(parts)


def _layer_of(name: str) -> int:
    numbers = [int(word) for word in name.split(".") if word.isdecimal()]
    if not numbers:
        raise UnsupportedModelError(f"the experts {name} belong to no numbered layer")
    return numbers[0]


def _check_none_left(model: nn.Module) -> None:
    """Raise if anything that looks like routed experts has kept its weights."""
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        is_stacked = any(p.dim() == 3 and "proj" in each for each, p in own.items())
        is_list = isinstance(module, nn.ModuleList) and name.endswith("experts")
        if is_list or (is_stacked and "expert" in name and "shared" not in name):
            raise UnsupportedModelError(
                f"transformers computes {name} ({type(module).__name__}) by itself and would load "
                "all of its experts: this kind of model cannot be streamed yet"
            )
