"""Where every byte of a checkpoint lies, independent of its format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class ExpertKey(NamedTuple):
    """Names one routed expert of one layer."""

    layer: int
    expert: int


class Extent(NamedTuple):
    """A run of bytes in a file."""

    path: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class ResidentTensor:
    """A tensor that every token may need: it stays in memory."""

    name: str
    extent: Extent


@dataclass(frozen=True)
class ExpertPart:
    """One matrix (or bias) of all experts of one layer, stored expert after expert.

    `tensor` is the name in the checkpoint, `extent` covers all experts, and expert e lies at
    `extent.offset + e * expert_nbytes`.
    """

    tensor: str
    extent: Extent
    expert_nbytes: int

    def expert_extent(self, expert: int) -> Extent:
        """Return where one expert's share of this part lies."""
        offset = self.extent.offset + expert * self.expert_nbytes
        return Extent(self.extent.path, offset, self.expert_nbytes)


@dataclass(frozen=True)
class MoeLayer:
    """The routed experts of one layer; `parts` in the order in which the engine uses them."""

    layer: int
    n_experts: int
    n_experts_used: int
    parts: tuple[ExpertPart, ...]

    @property
    def expert_nbytes(self) -> int:
        """Bytes of one expert, all parts together."""
        return sum(part.expert_nbytes for part in self.parts)

    @property
    def part_nbytes(self) -> tuple[int, ...]:
        """Bytes of each part of one expert."""
        return tuple(part.expert_nbytes for part in self.parts)


@dataclass(frozen=True)
class Catalog:
    """The format-independent picture of a checkpoint, from its headers alone."""

    architecture: str
    paths: tuple[str, ...]
    resident: tuple[ResidentTensor, ...]
    layers: tuple[MoeLayer, ...]
    """MoE layers only, in order."""
    metadata: Mapping[str, object] = field(default_factory=dict)
    """The checkpoint's own keys; large tokenizer arrays are described, not held."""
    unused: tuple[ResidentTensor, ...] = ()
    """Tensors that no engine here loads: the extra layers that predict several tokens at once."""

    @property
    def resident_nbytes(self) -> int:
        """Bytes of all resident tensors."""
        return sum(tensor.extent.nbytes for tensor in self.resident)

    @property
    def expert_nbytes(self) -> int:
        """Bytes of all routed experts of all layers."""
        return sum(part.extent.nbytes for layer in self.layers for part in layer.parts)

    @property
    def n_experts_total(self) -> int:
        """Number of (layer, expert) pairs."""
        return sum(layer.n_experts for layer in self.layers)

    @property
    def token_demand(self) -> int:
        """How many (layer, expert) pairs one token routes to."""
        return sum(layer.n_experts_used for layer in self.layers)
