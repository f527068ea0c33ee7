"""What a kernel is compiled for: how the packed matrix of one part lies in a slot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

SLOT_ALIGNMENT_NBYTES = 16
"""The widest load of a GPU's thread: slots begin at multiples of it."""


class Region(NamedTuple):
    """One stored tensor: where it begins, its type as safetensors names it, and what divides its
    address, whatever the slot."""

    start: int
    dtype: str
    alignment: int


class Tile(NamedTuple):
    """What one program of a kernel holds at once. All are powers of two.

    Values of a row that share a scale whatever the group come in units of `unit` columns.
    """

    rows: int
    columns: int
    unit: int


class Scales(NamedTuple):
    """Scales of blocks of `rows` by `columns` values, `per_row` of them side by side.

    `halved` scales are of bytes of exponents, each half of what it says. `whole` is one more for
    all of a piece: they are multiplied by it, or divided.
    """

    region: Region
    rows: int
    columns: int
    per_row: int
    halved: bool = False
    whole: Region | None = None
    divides: bool = False


@dataclass(frozen=True)
class Layout:
    """A part of an expert as it lies in a slot: pieces that are alike, one after the other.

    A piece is a matrix of `rows` by `columns` as the product uses it: out has a value for each row
    of each piece. Places are counted from the beginning of a piece, that of the bias from the
    beginning of the part. What a value is: code times scale, rounded to `rounded` first where that
    is given, then to `dtype`, the compute type; a plain weight is rounded to `dtype` alone.
    """

    rows: int
    columns: int
    pieces: int
    piece_nbytes: int
    codes: Region
    """Of type BF16, F16 or F32, where a value is stored as it is; else E4M3, INT4 or E2M1."""
    strides: tuple[int, int]
    """From row to row, and from column to column: in values of a plain weight, else in bytes."""
    dtype: str
    tile: Tile
    scales: Scales | None = None
    zeros: Region | None = None
    rounded: str = ""
    bias: Region | None = None
    rounds_before_bias: bool = False
    """Whether a sum becomes of the compute type before the bias is added, or after."""

    @property
    def out_rows(self) -> int:
        """Rows of all pieces together."""
        return self.pieces * self.rows

    @property
    def nbytes(self) -> int:
        """Bytes of a part, bias included."""
        matrix = self.pieces * self.piece_nbytes
        if self.bias is None:
            return matrix
        return self.bias.start + self.out_rows * (4 if self.bias.dtype == "F32" else 2)

    @property
    def row_tiles(self) -> int:
        """Tiles that cover the rows of a piece."""
        return -(-self.rows // self.tile.rows)

    @property
    def column_tiles(self) -> int:
        """Tiles that cover a row."""
        return -(-self.columns // self.tile.columns)

    @property
    def is_plain(self) -> bool:
        """Whether values are stored as they are."""
        return self.scales is None

    @property
    def has_two_codes_a_byte(self) -> bool:
        """Whether a byte holds the values of two columns."""
        return self.codes.dtype in ("INT4", "E2M1")

    @property
    def is_ragged(self) -> bool:
        """Whether the last tile of a row reaches beyond its columns."""
        return self.columns % self.tile.columns != 0

    @property
    def input_alignment(self) -> int:
        """What divides the address of each row of inputs."""
        return math.gcd(self.columns * (4 if self.dtype == "F32" else 2), SLOT_ALIGNMENT_NBYTES)


def tile_of(columns: int, bits: int, group: int | None = None) -> Tile:
    """Return the tile for rows of `columns` values of so many bits; `group` columns share a scale.

    It depends on nothing else, so that a sum is added up in the same order wherever it is.
    """
    widest = _ROW_NBYTES * 8 // bits
    whole = columns & -columns  # the largest power of two that divides them
    across = min(whole, widest)
    if across * bits < _NARROWEST_NBYTES * 8:  # rather mask what is beyond the columns
        across = min(widest, 1 << (columns - 1).bit_length())
    across = max(across, 8 // bits)  # a byte at least
    unit = min(across, _UNIT)
    if group is not None and group < columns:
        unit = min(unit, group & -group)
    return Tile(max(1, _TILE_NBYTES * 8 // bits // across), across, unit)


_TILE_NBYTES = 4096
"""Of codes: two loads of 16 bytes for each of 128 threads."""
_ROW_NBYTES = 256
_NARROWEST_NBYTES = 64
"""Less of a row at once is less than what memory hands out."""
_UNIT = 128
