"""Weights of 4 bits: integers, or E2M1 floats of the NVFP4 and MXFP4 kinds, with scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from localmoe.backends.torch.formats.format import DTYPES, Format
from localmoe.backends.torch.formats.scales import Grid, as_floats, finish
from localmoe.backends.torch.formats.tables import pairs
from localmoe.backends.torch.formats.work import area, row_blocks


def look_up(packed: torch.Tensor, codes: str) -> torch.Tensor:
    """Return the F32 values [rows, 2 * bytes] of bytes [rows, bytes] with two codes each.

    The low half of a byte comes first. The values are in a work area.
    """
    rows, nbytes = packed.shape
    index = area((rows, nbytes), torch.int32, packed.device).copy_(packed)
    values = area((rows, 2 * nbytes), torch.float32, packed.device)
    two = values.view(torch.int64).view(-1)
    torch.index_select(pairs(codes, packed.device), 0, index.view(-1), out=two)
    return values


def as_bytes(words: torch.Tensor) -> torch.Tensor:
    """Return rows of words as rows of bytes."""
    if words.stride(-1) != 1:
        words = words.clone(memory_format=torch.contiguous_format)
    return words.view(torch.uint8)


@dataclass(frozen=True)
class Int4(Format):
    """compressed-tensors' packed integers: (code - zero point) * scale, in the type of the scale.

    The product is rounded to the type of the scale, as the library does, and then to the compute
    type. Codes are from -8 to 7; a third tensor, if any, holds zero points, packed down the rows.
    """

    grid: Grid

    def _decode(self, tensors: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        (rows, columns), device = self.grid.shape, out.device
        scale_dtype = DTYPES[self.stored[1].dtype]
        scales = as_floats(tensors[1], self.stored[1].dtype).reshape(self.grid.counts)
        zeros = _zero_points(tensors[2], rows) if len(tensors) > 2 else None
        for first, last in row_blocks(rows, columns, device):
            values = look_up(as_bytes(tensors[0][first:last]), "int4")[:, :columns]
            spread = self.grid.spread(values)
            if zeros is not None:
                spread.sub_(self.grid.factors(zeros, first, last))
            spread.mul_(self.grid.factors(scales, first, last))
            finish(values, out[first:last], scale_dtype)


def _zero_points(packed: torch.Tensor, rows: int) -> torch.Tensor:
    """Return zero points [rows, groups] as F32 of words [rows / 8, groups] with eight rows each."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=packed.device)
    codes = packed.unsqueeze(1).bitwise_right_shift(shifts[:, None]).bitwise_and_(15)
    return codes.flatten(0, 1)[:rows].sub_(8).to(torch.float32)


@dataclass(frozen=True)
class Fp4(Format):
    """E2M1 values times a scale per group, times or over one of the whole matrix.

    `divides` says which, for a third tensor. The product is made in F32 and rounded to BF16 first
    if `to_bfloat16`, as compressed-tensors does. `transposed` is how gpt-oss is computed with: the
    stored matrix has a row for every column of the decoded one. Decoding is faster into a view that
    is transposed, whose memory has the rows of the stored matrix.
    """

    grid: Grid
    divides: bool = False
    to_bfloat16: bool = False
    transposed: bool = False

    def _decode(self, tensors: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        rows, columns = self.grid.shape
        # Twice the code times half the scale is the same, and 2^128 is within reach.
        dtype = "halved" if self.transposed else self.stored[1].dtype
        scales = as_floats(tensors[1], dtype)
        if len(tensors) > 2:
            whole = tensors[2].reshape(())
            scales = scales / whole if self.divides else scales * whole
        packed = as_bytes(tensors[0]).flatten(1)
        target = out.T if self.transposed else out
        for first, last in row_blocks(rows, columns, out.device):
            values = look_up(packed[first:last], "doubled" if self.transposed else "e2m1")
            groups = values.view(last - first, -1, self.grid.columns)
            groups.mul_(scales[first:last].unsqueeze(-1))
            finish(values, target[first:last], torch.bfloat16 if self.to_bfloat16 else None)
