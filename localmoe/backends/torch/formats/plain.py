"""Weights that are stored as they are: BF16, F16 or F32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from localmoe.backends.torch.formats.format import DTYPES, Format


@dataclass(frozen=True)
class Plain(Format):
    """One tensor in a type that can be computed with; of any number of dimensions."""

    def is_decoded(self, dtype: torch.dtype) -> bool:
        """Say whether it is stored in this type."""
        return DTYPES[self.stored[0].dtype] == dtype

    def _decode(self, tensors: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        out.copy_(tensors[0])
