"""Where a model of mlx-lm asks for routed experts: found, and emptied before anything is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_unflatten
from mlx_lm.models.switch_layers import SwitchGLU, SwitchMLP

from localmoe.errors import UnsupportedModelError


class ExpertArray(NamedTuple):
    """One array of a layer's experts, such as up_proj.scales; `shape` is that of one expert."""

    name: str
    shape: tuple[int, ...]
    dtype: mx.Dtype

    @property
    def expert_nbytes(self) -> int:
        """Bytes of one expert."""
        nbytes = int(self.dtype.size)
        for length in self.shape:
            nbytes *= length
        return nbytes


@dataclass(frozen=True)
class Switch:
    """A module that computes routed experts, [.., D] and ids [.., K] to [.., K, D]."""

    path: str
    layer: int
    """The model's own number; where layers have several switches, counted over the switches."""
    module: nn.Module
    n_experts: int
    arrays: tuple[ExpertArray, ...]

    @property
    def n_outputs(self) -> int:
        """How many numbers an expert gives back."""
        *_, last = (a for a in self.arrays if a.name.endswith(".weight"))
        return last.shape[0]

    def put(self, arrays: Sequence[mx.array]) -> None:
        """Compute with these from now on, [slots, ...] each; with none the switch is empty."""
        children = self.module.children()
        if not arrays:
            for each in self.arrays:
                child, _, name = each.name.rpartition(".")
                children[child].pop(name, None)
            return
        for each, array in zip(self.arrays, arrays, strict=True):
            child, _, name = each.name.rpartition(".")
            children[child][name] = array


def find_switches(model: nn.Module) -> tuple[Switch, ...]:
    """Find all switches of a model, by rising layer. Raises UnsupportedModelError."""
    found = [
        _switch(path, module)
        for path, module in model.named_modules()
        if isinstance(module, SwitchGLU | SwitchMLP)
    ]
    found.sort(key=lambda one: (one.layer, one.path))
    if len({one.layer for one in found}) < len(found):
        found = [replace(one, layer=number) for number, one in enumerate(found)]
    return tuple(found)


def replace_modules(model: nn.Module, by_path: dict[str, nn.Module]) -> None:
    """Put other modules in the places of those at these paths."""
    model.update_modules(tree_unflatten(list(by_path.items())))


def _switch(path: str, module: Any) -> Switch:
    numbers = [int(word) for word in path.split(".") if word.isdecimal()]
    if not numbers:
        raise UnsupportedModelError(f"the experts {path} belong to no numbered layer")
    arrays = list(_arrays(module))
    counts = {array.shape[0] for _, array in arrays}
    if len(counts) != 1:
        raise UnsupportedModelError(
            f"the arrays of the experts {path} are for different numbers of experts: "
            f"{sorted(counts)}"
        )
    return Switch(
        path,
        numbers[0],
        module,
        counts.pop(),
        tuple(ExpertArray(name, tuple(a.shape[1:]), a.dtype) for name, a in arrays),
    )


def _arrays(module: Any) -> Iterator[tuple[str, mx.array]]:
    """Yield name and array of everything that has an entry for each expert."""
    for child_name, child in module.children().items():
        if not isinstance(child, nn.Module) or not hasattr(child, "num_experts"):
            continue  # an activation
        for name, array in child.items():
            if isinstance(array, mx.array):
                yield f"{child_name}.{name}", array
