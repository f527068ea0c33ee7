"""Scales: read as F32, and multiplied into rows of values, whatever block each of them covers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from localmoe.backends.torch.formats.tables import scale_values
from localmoe.backends.torch.formats.work import area

BYTE_TYPES = ("F8_E4M3", "F8_E8M0", "U8", "halved")


@dataclass(frozen=True)
class Grid:
    """Which values share a scale: blocks of `rows` by `columns` of a matrix of `shape`.

    The last blocks of each direction may be smaller.
    """

    shape: tuple[int, int]
    rows: int
    columns: int

    @property
    def counts(self) -> tuple[int, int]:
        """How many scales there are, down and across."""
        return -(-self.shape[0] // self.rows), -(-self.shape[1] // self.columns)

    def row_block(self, first: int, last: int) -> int:
        """Return where to stop before `last`, so that rows from `first` on share their scales."""
        if self.rows == 1:
            return last
        return min(last, (first // self.rows + 1) * self.rows)

    def factors(self, scales: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """Return what the values of these rows are multiplied by; it broadcasts to `spread`.

        `scales` is F32, of shape `counts`; the rows are within one `row_block`.
        """
        if self.rows == 1:
            rows = scales[first:last]
            return rows.unsqueeze(-1) if self._grouped else rows
        row = scales[first // self.rows : first // self.rows + 1]
        if self.counts[1] == 1:
            return row
        return row.repeat_interleave(self.columns, dim=1)[:, : self.shape[1]]

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Return rows of values [R, columns] in the shape that `factors` broadcast to."""
        if not self._grouped:
            return values
        return values.view(values.shape[0], -1, self.columns)

    @property
    def _grouped(self) -> bool:
        return self.rows == 1 and self.counts[1] > 1


def as_floats(scales: torch.Tensor, dtype: str) -> torch.Tensor:
    """Return scales as F32, exactly; bytes are looked up, torch converts them slowly.

    `dtype` is the stored one, or "halved" for bytes of exponents whose values have doubled codes.
    """
    if dtype not in BYTE_TYPES:
        return scales.to(torch.float32)
    codes = scales.view(torch.uint8).to(torch.int32)
    values = torch.index_select(scale_values(dtype, scales.device), 0, codes.flatten())
    return values.view(scales.shape)


def finish(values: torch.Tensor, out: torch.Tensor, rounded: torch.dtype | None) -> None:
    """Convert F32 values to the type of `out`, through another one if the format's library does."""
    if rounded is None and out.stride(-1) != 1:  # torch transposes faster within one type
        rounded = out.dtype
    elif rounded == out.dtype:
        rounded = None
    if rounded is None or rounded == values.dtype:
        out.copy_(values)
    else:
        out.copy_(area(tuple(values.shape), rounded, values.device).copy_(values))
