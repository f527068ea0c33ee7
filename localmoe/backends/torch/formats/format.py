"""What every format says of one matrix: which tensors it is stored in, and how to decode them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""torch's types by the names that safetensors headers use, of all that models are made of."""
COMPUTE_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class StoredTensor(Protocol):
    """What a header says of a tensor: `dtype` as safetensors names it, and `shape`."""

    @property
    def dtype(self) -> str:
        """BF16, F8_E4M3 and so on."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of values in each direction, the contiguous one last."""
        ...


@dataclass(frozen=True)
class Stored:
    """One stored tensor of a matrix: the end of its name, its type and its shape."""

    suffix: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Format(ABC):
    """How one matrix is stored; all matrices of one kind and shape share a format.

    Attributes: `shape` of the decoded matrix, (rows, columns), and `stored`, the tensors that make
    it up, in the order in which `decode` takes them.
    """

    shape: tuple[int, ...]
    stored: tuple[Stored, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The end of each stored tensor's name; it follows the weight's name less `.weight`."""
        return tuple(each.suffix for each in self.stored)

    @property
    def nbytes(self) -> tuple[int, ...]:
        """The size in bytes of each stored tensor of one matrix."""
        return tuple(each.nbytes for each in self.stored)

    def tensor_names(self, weight_name: str) -> tuple[str, ...]:
        """Return the full name of each stored tensor of a weight."""
        return tuple(stem_of(weight_name) + suffix for suffix in self.names)

    def is_decoded(self, dtype: torch.dtype) -> bool:
        """Say whether the stored bytes are the matrix already, in this compute type."""
        return False

    def decode(self, tensors: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """Decode one matrix into `out`, whose type is the compute type: BF16, F16 or F32.

        `tensors` are as in `stored`, each in its own type or in one of the same width; strides and
        offsets may be any. All are on one device. The only memory taken is a small work area, on a
        CPU one per thread that is used again. Raises ValueError for tensors of another shape.
        """
        found = tuple(tuple(tensor.shape) for tensor in tensors)
        wanted = tuple(each.shape for each in self.stored)
        if found != wanted:
            raise ValueError(f"stored tensors of shapes {wanted} wanted, {found} given")
        for tensor, each in zip(tensors, self.stored, strict=True):
            if tensor.itemsize != DTYPES[each.dtype].itemsize:
                raise ValueError(f"{each.suffix} is {each.dtype}: {tensor.dtype} given")
        if tuple(out.shape) != self.shape or out.dtype not in COMPUTE_DTYPES:
            raise ValueError(
                f"a matrix of shape {self.shape} in BF16, F16 or F32 wanted, "
                f"{tuple(out.shape)} in {out.dtype} given"
            )
        typed = [
            tensor if tensor.dtype == DTYPES[each.dtype] else tensor.view(DTYPES[each.dtype])
            for tensor, each in zip(tensors, self.stored, strict=True)
        ]
        with torch.no_grad():
            self._decode(typed, out)

    @abstractmethod
    def _decode(self, tensors: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """Decode tensors of checked shapes and types."""


def stem_of(weight_name: str) -> str:
    """Return a weight's name without `.weight`: what the names of its stored tensors begin with."""
    return weight_name.removesuffix(".weight")
