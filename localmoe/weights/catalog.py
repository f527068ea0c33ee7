"""Where every byte of a checkpoint lies, independent of its format."""

from __future__ import annotations

import hashlib
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

    @property
    def nbytes(self) -> int:
        """Bytes of all experts."""
        return self.extent.nbytes

    def expert_extent(self, expert: int) -> Extent:
        """Return where one expert's share of this part lies."""
        offset = self.extent.offset + expert * self.expert_nbytes
        return Extent(self.extent.path, offset, self.expert_nbytes)

    def expert_pieces(self, expert: int) -> tuple[Extent, ...]:
        """Return the runs of bytes that make up one expert's share, in their order: just one."""
        return (self.expert_extent(expert),)

    def is_aligned(self, block: int) -> bool:
        """Whether every expert's share begins and ends at multiples of the block."""
        return self.extent.offset % block == 0 and self.expert_nbytes % block == 0

    def remainder(self, block: int) -> int:
        """Return what every share's offset leaves modulo the block; 0 where they differ."""
        return self.extent.offset % block if self.expert_nbytes % block == 0 else 0


@dataclass(frozen=True)
class ScatteredPart:
    """One matrix (or bias) of all experts of one layer, each put together from tensors of its own.

    `tensor` names the matrix that it becomes. `pieces` are the runs of bytes of each expert in
    turn, one after the other, in any files; all experts have `expert_nbytes` together. Raises
    ValueError where that is not so: what is read must not leave its slot.
    """

    tensor: str
    pieces: tuple[tuple[Extent, ...], ...]
    expert_nbytes: int

    def __post_init__(self) -> None:
        for runs in self.pieces:
            total = sum(run.nbytes for run in runs)
            if total != self.expert_nbytes or any(run.nbytes < 1 for run in runs):
                raise ValueError(
                    f"{self.tensor}: {total} bytes in {runs}, not {self.expert_nbytes}"
                )

    @property
    def nbytes(self) -> int:
        """Bytes of all experts."""
        return len(self.pieces) * self.expert_nbytes

    def expert_pieces(self, expert: int) -> tuple[Extent, ...]:
        """Return the runs of bytes that make up one expert's share, in their order."""
        return self.pieces[expert]

    def is_aligned(self, block: int) -> bool:
        """Whether every expert's share is one run, from one multiple of the block to another."""
        return self.expert_nbytes % block == 0 and all(
            len(runs) == 1 and runs[0].offset % block == 0 for runs in self.pieces
        )

    def remainder(self, block: int) -> int:
        """Return what every share's first offset leaves modulo the block; 0 where they differ."""
        found = {runs[0].offset % block for runs in self.pieces}
        return found.pop() if len(found) == 1 else 0


Part = ExpertPart | ScatteredPart
"""One matrix (or bias) of all experts of one layer, wherever its bytes lie."""


@dataclass(frozen=True)
class MoeLayer:
    """The routed experts of one layer; `parts` in the order in which the engine uses them."""

    layer: int
    n_experts: int
    n_experts_used: int
    parts: tuple[Part, ...]

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
        return sum(part.nbytes for layer in self.layers for part in layer.parts)

    def resident_digest(self, kind: bytes) -> bytes:
        """Return a SHA-256 of `kind` and of where every resident tensor lies."""
        digest = hashlib.sha256(kind)
        for tensor in self.resident:
            line = f"{tensor.name} {tensor.extent.offset} {tensor.extent.nbytes}\n"
            digest.update(line.encode())
        return digest.digest()

    @property
    def n_experts_total(self) -> int:
        """Number of (layer, expert) pairs."""
        return sum(layer.n_experts for layer in self.layers)

    @property
    def token_demand(self) -> int:
        """How many (layer, expert) pairs one token routes to."""
        return sum(layer.n_experts_used for layer in self.layers)
