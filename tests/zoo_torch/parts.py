"""Parts of experts in slots, as a checkpoint has them: for what computes with bytes of slots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from localmoe.backends.torch.expert_sources import ExpertSource
from localmoe.backends.torch.slot_weights import Place
from localmoe.backends.torch.weight import Weight
from localmoe.backends.torch.weights import find_weights
from localmoe.weights.catalog import Extent
from localmoe.weights.safetensors import StoredTensor
from zoo_torch.formats import PLAIN, quantization_config, store
from zoo_torch.headers import NAMES

START, GAP = 64, 64
"""Bytes before the first slot, and the least between two."""


@dataclass(frozen=True)
class Shape:
    """What a part is to be. A piece has `rows` outputs and `columns` inputs."""

    format_name: str
    rows: int
    columns: int
    pieces: int = 1
    dtype: torch.dtype = torch.bfloat16
    bias: torch.dtype | None = None
    is_transposed: bool = False

    def __str__(self) -> str:
        words = [self.format_name, f"{self.pieces}x{self.rows}x{self.columns}", str(self.dtype)]
        return "-".join(words + ["bias"] * (self.bias is not None) + ["T"] * self.is_transposed)


@dataclass(frozen=True)
class SlottedPart:
    """A part of as many experts as there are slots."""

    shape: Shape
    sources: tuple[ExpertSource, ...]
    place: Place
    memory: Tensor

    def matrix(self, slot: int) -> Tensor:
        """Return the decoded matrix of a slot, [out, in]."""
        found = self._decoded(slot)[0]
        return found.T if self.shape.is_transposed else found

    def bias(self, slot: int) -> Tensor | None:
        """Return the bias of a slot, [out]."""
        found = self._decoded(slot)
        return found[1] if len(found) > 1 else None

    def _decoded(self, slot: int) -> list[Tensor]:
        start, found = self.place.start + slot * self.place.stride, []
        for source in self.sources:
            out = torch.empty(source.shape, dtype=source.dtype, device=self.memory.device)
            source.decode(self.memory[start : start + source.expert_nbytes], out)
            found.append(out)
            start += source.expert_nbytes
        return found


def make_part(shape: Shape, slots: int = 3, seed: int = 0) -> SlottedPart:
    """Return a part whose codes are random bits, so that all of them occur. Gaps hold 255."""
    generator = torch.Generator().manual_seed(seed)
    experts = [_expert(shape, generator) for _ in range(slots)]
    sources = experts[0][0]
    nbytes = len(experts[0][1])
    stride = -(-nbytes // 64) * 64 + GAP
    memory = torch.full((START + slots * stride,), 255, dtype=torch.uint8)
    for slot, (_, raw) in enumerate(experts):
        start = START + slot * stride
        memory[start : start + nbytes] = raw
    return SlottedPart(shape, sources, Place(START, stride, slots), memory)


def _expert(shape: Shape, generator: torch.Generator) -> tuple[tuple[ExpertSource, ...], Tensor]:
    weights, raw = [], []
    for piece in range(shape.pieces):
        weight, tensors = _weight(f"experts.0.w{piece}.weight", shape, generator)
        weights.append(weight)
        raw += [_bytes(tensors[each.name]) for each in weight.stored]
    rows = shape.pieces * shape.rows
    size = (shape.columns, rows) if shape.is_transposed else (rows, shape.columns)
    sources = [_source("matrix", size, shape.dtype, weights)]
    if shape.bias is not None:
        values = torch.randn(rows, generator=generator).to(shape.bias)
        stored = _stored("bias", values)
        bias = Weight("bias", (stored,), (rows,), shape.bias)
        sources.append(_source("bias", (rows,), shape.dtype, [bias]))
        raw.append(_bytes(values))
    return tuple(sources), torch.cat(raw)


def _weight(
    name: str, shape: Shape, generator: torch.Generator
) -> tuple[Weight, dict[str, Tensor]]:
    rows, columns = shape.rows, shape.columns
    is_stacked = shape.format_name == "mxfp4"
    size = (columns, rows) if shape.is_transposed else (rows, columns)
    values = torch.randn((1, *size) if is_stacked else size, generator=generator)
    name = name.removesuffix(".weight") if is_stacked else name
    tensors = store(name, values.to(torch.bfloat16), shape.format_name)
    if shape.format_name in PLAIN:
        tensors = {name: values.to(PLAIN[shape.format_name])}
    for each, tensor in tensors.items():
        _randomize(each, tensor, generator)
    found = find_weights(
        {each: _stored(each, tensor) for each, tensor in tensors.items()},
        quantization_config(shape.format_name),
        shape.dtype,
    )[name]
    return (found.share(1) if is_stacked else found), tensors


def _randomize(name: str, tensor: Tensor, generator: torch.Generator) -> None:
    """Fill codes, and scales that are floats of a byte, with random bits."""
    is_scale = "scale" in name
    is_code = name.endswith(("_packed", "_blocks", "_zero_point")) or tensor.dtype == torch.uint8
    if not (is_code and not is_scale or tensor.dtype == torch.float8_e4m3fn):
        return
    raw = tensor.view(-1).view(torch.uint8)
    raw.copy_(torch.randint(0, 256, raw.shape, generator=generator, dtype=torch.uint8))
    if is_scale:
        raw[raw & 0x7F == 0x7F] = 0x7E  # not a number


def _source(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, weights: list[Weight]
) -> ExpertSource:
    config: Any = None
    return ExpertSource(name, shape, dtype, (tuple(weights),), None, 1, config)


def _stored(name: str, tensor: Tensor) -> StoredTensor:
    extent = Extent("nowhere", 0, tensor.numel() * tensor.element_size())
    return StoredTensor(name, NAMES[tensor.dtype], tuple(tensor.shape), extent)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
