"""A weight as a model means it: one tensor of a checkpoint, or several that encode it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from localmoe.backends.torch.formats import DTYPES, Format
from localmoe.weights.safetensors import StoredTensor


@dataclass(frozen=True)
class Weight:
    """A weight of a checkpoint. `shape` and `dtype` are those it is computed with or stored in."""

    name: str
    stored: tuple[StoredTensor, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    """Of a weight that is encoded: what it is decoded to."""
    format: Format | None = None
    """None: the one stored tensor is the weight."""

    @property
    def is_plain(self) -> bool:
        """Whether its numbers are stored as they are."""
        return self.format is None

    @property
    def nbytes(self) -> int:
        """Bytes in the checkpoint."""
        return sum(tensor.extent.nbytes for tensor in self.stored)

    @property
    def n_numbers(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    def share(self, n: int) -> Weight:
        """Return what the first of `n` experts has of a weight in which all of them are stacked."""
        stored = tuple(
            replace(
                tensor,
                shape=tensor.shape[1:],
                extent=tensor.extent._replace(nbytes=tensor.extent.nbytes // n),
            )
            for tensor in self.stored
        )
        return replace(self, stored=stored, shape=self.shape[1:])

    def decode(self, raw: Tensor, out: Tensor) -> None:
        """Turn bytes, uint8 [nbytes], into numbers of the type of `out`."""
        tensors = self._tensors(raw)
        if self.format is None:
            out.copy_(tensors[0].reshape(out.shape))
        else:
            self.format.decode(tensors, out)

    def decoded(self, raw: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the weight that bytes, uint8 [nbytes], stand for."""
        out = torch.empty(self.shape, dtype=dtype, device=raw.device)
        self.decode(raw, out)
        return out

    def _tensors(self, raw: Tensor) -> list[Tensor]:
        found, start = [], 0
        for stored in self.stored:
            part = raw[start : start + stored.extent.nbytes]
            start += stored.extent.nbytes
            dtype = DTYPES[stored.dtype]
            if part.storage_offset() % dtype.itemsize:
                part = part.clone()  # torch has no view of another type at an odd place
            found.append(part.view(dtype).view(stored.shape))
        return found
