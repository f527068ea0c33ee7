"""FP8 weights, E4M3: one byte per value, and a scale per block, channel or tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from localmoe.backends.torch.formats.format import Format
from localmoe.backends.torch.formats.scales import Grid, as_floats
from localmoe.backends.torch.formats.work import area, row_blocks

# E4M3's bits in F16's places are the value over 2^8, for F16's exponents are 8 larger.
SHIFT, MASK, LIFT = 7, 0xBF80 - (1 << 16), 2.0**8


@dataclass(frozen=True)
class Fp8(Format):
    """E4M3 values times their scales, in F32, rounded once to the compute type.

    The two codes of NaN, which nobody writes, are read as 480 and -480; scales from 2^120 on give
    infinities.
    """

    grid: Grid

    def _decode(self, tensors: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        codes = tensors[0].view(torch.int8)
        scales = as_floats(tensors[1], self.stored[1].dtype).reshape(self.grid.counts) * LIFT
        rows, columns = self.grid.shape
        for begin, end in row_blocks(rows, columns, out.device):
            while begin < end:
                last = self.grid.row_block(begin, end)
                size = (last - begin, columns)
                # torch's own conversion from E4M3 takes many times as long.
                bits = area(size, torch.int16, out.device).copy_(codes[begin:last])
                bits.bitwise_left_shift_(SHIFT).bitwise_and_(MASK)
                values = area(size, torch.float32, out.device).copy_(bits.view(torch.float16))
                self.grid.spread(values).mul_(self.grid.factors(scales, begin, last))
                out[begin:last].copy_(values)
                begin = last
