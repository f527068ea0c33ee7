"""The catalog of a GGUF model: which tensors stay resident and where each expert lies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from localmoe.errors import ModelFormatError, UnsupportedModelError
from localmoe.weights.catalog import Catalog, ExpertPart, Extent, MoeLayer, ResidentTensor
from localmoe.weights.generative import check_generative
from localmoe.weights.gguf_header import GgufHeader
from localmoe.weights.gguf_tensors import TensorInfo
from localmoe.weights.shards import read_shards

MAX_EXPERTS = 1024
MAX_LAYERS = 512

_PART = re.compile(r"blk\.(0|[1-9]\d{0,8})\.ffn_(gate_up|gate|up|down)_exps\.(weight|bias)")
_BLOCK = re.compile(r"blk\.(\d{1,9})\.")
_SEPARATE_EXPERT = re.compile(r"blk\.\d+\.ffn_(gate|up|down)\.\d+\.weight")

_ORDER = tuple((m, k) for m in ("gate_up", "gate", "up", "down") for k in ("weight", "bias"))
"""llama.cpp multiplies the gate first: its activation is the first source of the gated product."""


class _Part(NamedTuple):
    path: str
    tensor: TensorInfo


_Layer = dict[tuple[str, str], _Part]


def read_catalog(path: str | Path) -> Catalog:
    """Read the headers of a GGUF model and say where its bytes lie.

    `path` is a file, any shard of a split model, or a directory that holds one model. No weight is
    read. Raises ModelNotFoundError, ModelFormatError, UnsupportedModelError.
    """
    return build_catalog(read_shards(path))


def build_catalog(headers: Sequence[GgufHeader]) -> Catalog:
    """Return the catalog of a model whose shards have these headers, as read_shards gives them.

    That of a dense model has no layers: all of its tensors are resident.
    """
    first = headers[0]
    architecture = architecture_of(first)
    check_generative(first, architecture)
    n_layers = _layers_in_use(first, architecture)
    found: dict[int, _Layer] = {}
    resident: list[ResidentTensor] = []
    unused: list[ResidentTensor] = []
    for header in headers:
        for tensor in header.tensors:
            extent = Extent(header.path, tensor.offset, tensor.nbytes)
            part = _PART.fullmatch(tensor.name)
            if _block(tensor.name) >= n_layers:
                unused.append(ResidentTensor(tensor.name, extent))
            elif part:
                layer = found.setdefault(int(part[1]), {})
                layer[part[2], part[3]] = _Part(header.path, tensor)
            else:
                resident.append(ResidentTensor(tensor.name, extent))
    if not found:
        _check_dense(headers, architecture)
    n_experts = _expert_count(first, architecture) if found else 0
    return Catalog(
        architecture=architecture,
        paths=tuple(header.path for header in headers),
        resident=tuple(resident),
        layers=tuple(
            MoeLayer(
                layer,
                n_experts,
                _experts_used(first, architecture, layer, n_experts),
                _parts(found[layer], layer, n_experts),
            )
            for layer in sorted(found)
        ),
        metadata=first.metadata,
        unused=tuple(unused),
    )


def architecture_of(header: GgufHeader) -> str:
    """Return the architecture that the metadata name. Raises ModelFormatError."""
    value = header.metadata.get("general.architecture")
    if not isinstance(value, str) or not value:
        raise ModelFormatError(
            f"{header.path}: general.architecture should name the model's architecture, but is "
            f"{value!r}. The file is damaged or not a language model."
        )
    return value


def _layers_in_use(header: GgufHeader, architecture: str) -> int:
    """Return the number of layers that a token passes, without those that predict more tokens."""
    n_layers = _integer(header, f"{architecture}.block_count", 1, MAX_LAYERS)
    if f"{architecture}.nextn_predict_layers" not in header.metadata:
        return n_layers
    return n_layers - _integer(header, f"{architecture}.nextn_predict_layers", 0, n_layers - 1)


def _integer(header: GgufHeader, key: str, least: int, most: int) -> int:
    value = header.metadata.get(key)
    if type(value) is not int or not least <= value <= most:
        raise ModelFormatError(
            f"{header.path}: {key} should be a number from {least} to {most}, but is {value!r}."
        )
    return value


def _block(name: str) -> int:
    match = _BLOCK.match(name)
    return int(match[1]) if match else -1


def _check_dense(headers: Sequence[GgufHeader], architecture: str) -> None:
    """Refuse a model whose experts are missing, or are where they cannot be streamed from."""
    for header in headers:
        for tensor in header.tensors:
            if _SEPARATE_EXPERT.fullmatch(tensor.name):
                raise UnsupportedModelError(
                    f"{header.path} stores each expert as a tensor of its own ({tensor.name}), as "
                    "old GGUF files do. Take a newer file of this model, or convert it again."
                )
    key = f"{architecture}.expert_count"
    n_experts = headers[0].metadata.get(key, 0)
    if n_experts not in (0, 1):  # one expert is a dense layer by another name
        raise ModelFormatError(
            f"{headers[0].path}: {key} is {n_experts!r}, but there are no tensors with experts. "
            "The file is damaged, or made by another program."
        )


def _expert_count(header: GgufHeader, architecture: str) -> int:
    return _integer(header, f"{architecture}.expert_count", 1, MAX_EXPERTS)


def _experts_used(header: GgufHeader, architecture: str, layer: int, n_experts: int) -> int:
    key = f"{architecture}.expert_used_count"
    value = header.metadata.get(key)
    if isinstance(value, tuple):
        value = value[layer] if layer < len(value) else None
    if type(value) is not int or not 1 <= value <= n_experts:
        raise ModelFormatError(
            f"{header.path}: {key} should be a number from 1 to the {n_experts} experts in layer "
            f"{layer}, but is {value!r}."
        )
    return value


def _parts(found: _Layer, layer: int, n_experts: int) -> tuple[ExpertPart, ...]:
    some = next(iter(found.values()))
    matrices = {matrix for matrix, kind in found if kind == "weight"}
    fused = "gate_up" in matrices
    if "down" not in matrices or fused == ("up" in matrices) or (fused and "gate" in matrices):
        raise ModelFormatError(
            f"{some.path}: layer {layer} has the expert matrices {sorted(matrices)}; wanted are "
            "down and either gate_up, or up with or without gate. The file is damaged."
        )
    for matrix, kind in found:
        if matrix not in matrices:
            raise ModelFormatError(
                f"{some.path}: layer {layer} has ffn_{matrix}_exps.{kind} without its weight."
            )
    return tuple(_expert_part(found[key], key[1], n_experts) for key in _ORDER if key in found)


def _expert_part(part: _Part, kind: str, n_experts: int) -> ExpertPart:
    path, tensor = part
    axis = 2 if kind == "weight" else 1
    trailing = set(tensor.shape[axis + 1 :])
    if tensor.shape[axis] != n_experts or trailing - {1}:
        raise ModelFormatError(
            f"{path}: {tensor.name} has shape {list(tensor.shape)}; dimension {axis} should be "
            f"the {n_experts} experts and the last one. The file is damaged."
        )
    extent = Extent(path, tensor.offset, tensor.nbytes)
    return ExpertPart(tensor.name, extent, tensor.nbytes // n_experts)
