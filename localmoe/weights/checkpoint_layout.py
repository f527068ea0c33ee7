"""Where everything of a safetensors checkpoint lies: its catalog, from headers and config.json.

The torch engine asks transformers which tensors become experts. That takes torch, and the class of
the model; here their names say it, which is enough for a plan and for telling people.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from localmoe.errors import ModelFormatError, UnsupportedModelError
from localmoe.weights.catalog import Catalog, MoeLayer, ResidentTensor
from localmoe.weights.checkpoint_config import CheckpointConfig, read_checkpoint_config
from localmoe.weights.expert_group import ExpertGroup
from localmoe.weights.expert_names import expert_name, layer_place
from localmoe.weights.safetensors import StoredTensor, read_tensors
from localmoe.weights.stored_weights import StoredWeight, stored_weights

_FURTHER_TOKENS = "mtp"
"""How the layers are called that predict several tokens at once."""


@dataclass(frozen=True)
class CheckpointLayout:
    """A checkpoint as its headers and its configuration describe it."""

    config: CheckpointConfig
    tensors: Mapping[str, StoredTensor]
    catalog: Catalog
    resident: tuple[StoredWeight, ...]
    """What every token may need; `catalog.resident` has its tensors."""
    experts: Mapping[int, tuple[StoredWeight, ...]]
    """By layer, what the first expert is made of; the others are alike."""
    stack: str
    """How the names of all layers begin, in front of their numbers."""


def read_layout(path: str | Path) -> CheckpointLayout:
    """Read headers, index and config.json of a checkpoint: a folder, its index, or a file in it.

    A dense model has no layers in its catalog. Raises ModelNotFoundError, ModelFormatError,
    UnsupportedModelError.
    """
    name = os.fspath(path)
    folder = name if os.path.isdir(name) else os.path.dirname(name)
    tensors = read_tensors(name)
    return lay_out(tensors, read_checkpoint_config(folder))


def lay_out(tensors: Mapping[str, StoredTensor], config: CheckpointConfig) -> CheckpointLayout:
    """Tell experts from what is resident. Raises ModelFormatError, UnsupportedModelError."""
    weights, aside = stored_weights(tensors)
    groups: dict[str, ExpertGroup] = {}
    others: list[StoredWeight] = []
    for weight in weights:
        name = expert_name(weight.name, len(weight.shape))
        if name is None:
            others.append(weight)
        else:
            groups.setdefault(name.group, ExpertGroup(name.group)).add(name, weight)
    stack, beyond = _stack(groups, config), config.n_layers
    used = [g for g in groups.values() if not _is_beyond(g.name, stack, beyond)]
    unused = list(aside)
    for group in groups.values():
        unused += [t for w in group.left_over(group in used) for t in w.tensors]
    resident = []
    for weight in others:
        if _is_beyond(weight.name, stack, beyond):
            unused += weight.tensors
        else:
            resident.append(weight)
    numbers = _numbers(used)
    catalog = Catalog(
        architecture=config.model_type,
        paths=tuple(dict.fromkeys(t.extent.path for t in tensors.values())),
        resident=_placed(t for w in resident for t in w.tensors),
        layers=_layers(used, numbers, config),
        unused=_placed(unused),
    )
    experts = {numbers[group.name]: group.first_expert() for group in used}
    return CheckpointLayout(config, tensors, catalog, tuple(resident), experts, stack)


def _placed(tensors: Iterable[StoredTensor]) -> tuple[ResidentTensor, ...]:
    return tuple(ResidentTensor(tensor.name, tensor.extent) for tensor in tensors)


def _stack(groups: Mapping[str, ExpertGroup], config: CheckpointConfig) -> str:
    """Return what the names of the layers begin with that have experts; the shortest where several.

    Raises UnsupportedModelError where there should be experts, and none are known by their names.
    """
    stacks = {place[0] for name in groups if (place := layer_place(name)) and not _is_further(name)}
    if not stacks and (config.n_experts or 0) > 1:
        raise UnsupportedModelError(
            f"{config.path} says that a layer has {config.n_experts} experts, but no tensor of "
            f"this model ({config.model_type}) has a name that experts are known by. Take a newer "
            "localmoe, or another repository with this model."
        )
    return min(stacks, key=len, default="")


def _is_further(name: str) -> bool:
    return _FURTHER_TOKENS in name.split(".")


def _is_beyond(name: str, stack: str, n_layers: int | None) -> bool:
    """Whether a name belongs to layers that predict several tokens at once."""
    if _is_further(name):
        return True
    place = layer_place(name)
    return bool(place and n_layers and place[0] == stack and place[1] >= n_layers)


def _numbers(groups: Sequence[ExpertGroup]) -> dict[str, int]:
    """Number the groups by their layers, or one after the other where layers have several."""
    places = {group.name: layer_place(group.name) for group in groups}
    numbers = {name: place[1] for name, place in places.items() if place}
    if len(numbers) == len(groups) == len(set(numbers.values())):
        return numbers
    ordered = sorted(groups, key=lambda group: (numbers.get(group.name, 0), group.name))
    return {group.name: number for number, group in enumerate(ordered)}


def _layers(
    groups: Sequence[ExpertGroup], numbers: Mapping[str, int], config: CheckpointConfig
) -> tuple[MoeLayer, ...]:
    if not groups:
        return ()
    n_used = config.n_experts_used
    if not n_used:
        raise ModelFormatError(
            f"{config.path} should say how many experts a token uses, as in num_experts_per_tok, "
            "but does not. It is of another model, or of a kind that is not known here."
        )
    layers = []
    for group in sorted(groups, key=lambda group: numbers[group.name]):
        parts, n_experts = group.parts(), group.n_experts
        said = config.n_experts
        if said and n_experts > said:
            raise ModelFormatError(
                f"{group.name} has {n_experts} experts, and {config.path} says that there are "
                f"{said}. The files are of different models: pull the model again."
            )
        layers.append(MoeLayer(numbers[group.name], n_experts, min(n_used, n_experts), parts))
    return tuple(layers)
