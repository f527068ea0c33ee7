"""From tensors of a checkpoint to parameters of experts, by transformers' own table of names."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from localmoe.backends.torch.weight import Weight
from localmoe.errors import ModelFormatError, UnsupportedModelError
from localmoe.weights.catalog import Extent


@dataclass(frozen=True)
class ExpertSource:
    """How one parameter of a layer's experts is made for one expert of the layer."""

    target: str
    """The parameter's name in the model."""
    shape: tuple[int, ...]
    """Of one expert."""
    dtype: torch.dtype
    weights: tuple[tuple[Weight, ...], ...]
    """For each expert what it is made of, in order; one for all: they lie stacked in it."""
    converter: WeightConverter | None
    """transformers' own way where the bytes are not simply one after the other."""
    n_experts: int
    config: PretrainedConfig

    @property
    def is_stacked(self) -> bool:
        """Whether all experts lie in one tensor, one after the other."""
        return len(self.weights) == 1 and self.n_experts > 1

    @property
    def is_stored(self) -> bool:
        """Whether the bytes in the file are those that are computed with."""
        return self.converter is None and all(
            weight.is_plain and weight.dtype == self.dtype for weight in self.weights[0]
        )

    @cached_property
    def first(self) -> tuple[Weight, ...]:
        """What the first expert is made of; the others are alike."""
        if not self.is_stacked:
            return self.weights[0]
        return tuple(weight.share(self.n_experts) for weight in self.weights[0])

    @property
    def expert_nbytes(self) -> int:
        """Bytes of one expert in the checkpoint."""
        return sum(weight.nbytes for weight in self.first)

    def extents(self, expert: int) -> list[Extent]:
        """Return where an expert's bytes lie, in order."""
        if not self.is_stacked:
            return [stored.extent for w in self.weights[expert] for stored in w.stored]
        found = [stored.extent for weight in self.first for stored in weight.stored]
        return [one._replace(offset=one.offset + expert * one.nbytes) for one in found]

    def decode(self, raw: Tensor, out: Tensor) -> None:
        """Turn an expert's bytes, uint8, into its parameter."""
        start, pieces = 0, []
        for one in self.first:
            pieces.append((one, raw[start : start + one.nbytes]))
            start += one.nbytes
        if self.converter is not None:
            out.copy_(self._convert([w.decoded(r, self.dtype) for w, r in pieces]))
            return
        row = 0
        for weight, nbytes in pieces:
            n_rows = weight.shape[0] if len(pieces) > 1 else out.shape[0]
            weight.decode(nbytes, out[row : row + n_rows])
            row += n_rows

    def _convert(self, tensors: list[Tensor]) -> Tensor:
        converter = copy.deepcopy(self.converter)
        assert converter is not None
        for pattern, one in zip(converter.source_patterns, tensors, strict=True):
            converter.collected_tensors[pattern] = [one[None] if self.is_stacked else one]
        model: Any = _OneExpert(self.shape, self.dtype)
        found = converter.convert(self.target, model=model, config=self.config)
        tensor: Tensor = found[self.target][0]
        return tensor


class _OneExpert:
    """Stands for a model of one expert, where a conversion looks at what it is to make."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._one = torch.empty((1, *shape), dtype=dtype, device="meta")

    def get_parameter(self, _name: str) -> Tensor:
        return self._one

    def get_submodule(self, _name: str) -> _OneExpert:
        return self

    def __getattr__(self, _name: str) -> Tensor:
        return self._one


def find_sources(
    model: PreTrainedModel,
    weights: Mapping[str, Weight],
    shapes: Mapping[str, Sequence[int]],
    dtype: torch.dtype,
) -> tuple[dict[str, ExpertSource], set[str]]:
    """Find what each parameter of routed experts is made of, and which weights the model uses.

    What it does not use is there for others, such as layers that predict further tokens.
    `weights`: the checkpoint's, by name. `shapes`: those of the parameters that were taken out of
    the model, [E, ...], by name. Raises ModelFormatError, UnsupportedModelError.
    """
    mapping = get_model_conversion_mapping(model)
    renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
    converters = [one for one in mapping if isinstance(one, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    names = dict.fromkeys([*model.state_dict(), *shapes], True)
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    converter_of: dict[str, WeightConverter | None] = {}
    used: set[str] = set()
    for name in sorted(weights, key=dot_natural_key):
        for target, pattern in _targets(name, (renamings, converters), by_pattern, model, names):
            if target in names:
                used.add(name)
            if target in shapes:
                found[target][pattern or name].append(name)
                converter_of[target] = by_pattern.get(pattern) if pattern else None
    if missing := sorted(set(shapes) - set(found)):
        raise ModelFormatError(
            f"the checkpoint has no tensors for {missing[0]}"
            + (f" and {len(missing) - 1} others like it" if len(missing) > 1 else "")
            + ": it is not whole, or its experts are named in a way that transformers does not know"
        )
    sources = {
        target: _source(
            target,
            converter_of[target],
            parts,
            weights,
            (tuple(shapes[target]), dtype, model.config),
        )
        for target, parts in found.items()
    }
    return sources, used


def _targets(
    name: str,
    rules: tuple[list[WeightRenaming], list[WeightConverter]],
    by_pattern: Mapping[str, WeightConverter],
    model: PreTrainedModel,
    names: dict[str, bool],
) -> Iterable[tuple[str, str | None]]:
    """Yield the parameters that a tensor goes into, each with the pattern that said so."""
    target, pattern = rename_source_key(name, *rules, model.base_model_prefix, names)
    if target not in names and name in names:
        target, pattern = rename_source_key(name, [], [], model.base_model_prefix, names)
    targets: Sequence[str] = by_pattern[pattern].target_patterns if pattern else ()
    if len(targets) < 2:
        yield target, pattern
        return
    for other in targets:
        yield target.replace(targets[0], other), pattern


def _source(
    target: str,
    converter: WeightConverter | None,
    parts: Mapping[str, list[str]],
    weights: Mapping[str, Weight],
    wanted: tuple[tuple[int, ...], torch.dtype, PretrainedConfig],
) -> ExpertSource:
    shape, dtype, config = wanted
    n_experts = shape[0]
    patterns = [p for p in converter.source_patterns if p in parts] if converter else list(parts)
    columns = [parts[pattern] for pattern in patterns]
    operations = [type(one) for one in converter.operations] if converter else []
    is_each = MergeModulelist in operations
    expected = n_experts if is_each else 1
    if bad := next((column for column in columns if len(column) != expected), None):
        raise ModelFormatError(
            f"{target} is made of {len(bad)} tensors such as {bad[0]}, and {expected} were "
            "expected: the checkpoint is not whole, or not what config.json says"
        )
    simple = (
        operations in ([], [MergeModulelist])
        or (operations == [MergeModulelist, Concatenate] and converter is not None)
        and converter.operations[1].dim == 1
    )
    rows = tuple(
        tuple(weights[column[row]] for column in columns) for row in range(len(columns[0]))
    )
    source = ExpertSource(
        target, shape[1:], dtype, rows, None if simple else converter, n_experts, config
    )
    _check(source)
    return source


def _check(source: ExpertSource) -> None:
    """Raise unless all experts are alike, and what is simply put together has the right size."""
    like = [(w.shape, w.dtype, w.nbytes) for w in source.weights[0]]
    for row in source.weights:
        if [(w.shape, w.dtype, w.nbytes) for w in row] != like:
            raise ModelFormatError(
                f"the experts of {source.target} differ in shape or type from one to the next "
                f"(see {row[0].name})"
            )
    if source.converter is not None:
        if source.is_stacked and any(not w.is_plain for w in source.weights[0]):
            raise UnsupportedModelError(
                f"{source.target} is quantized and stored in another order than it is used"
            )
        return
    count, wanted = sum(w.n_numbers for w in source.first), math.prod(source.shape)
    if count != wanted:
        raise ModelFormatError(
            f"{source.weights[0][0].name} and what goes with it hold {count} numbers per expert, "
            f"and {source.target} has {wanted}: config.json is of another model"
        )
