"""Which layout the bytes of a part have, or why no kernel reads them as they lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from localmoe.backends.torch.formats import DTYPES, Format
from localmoe.backends.torch.formats.four_bits import Fp4, Int4
from localmoe.backends.torch.formats.fp8 import Fp8
from localmoe.backends.torch.formats.scales import Grid
from localmoe.backends.torch.kernels.layout import (
    SLOT_ALIGNMENT_NBYTES,
    Layout,
    Region,
    Scales,
    tile_of,
)

if TYPE_CHECKING:
    from localmoe.backends.torch.expert_sources import ExpertSource
    from localmoe.backends.torch.weight import Weight

FLOATS = {DTYPES[name]: name for name in ("BF16", "F16", "F32")}


class Refusal(NamedTuple):
    """Why a part has no kernel, in words that a user may read."""

    reason: str


def layout_of(sources: Sequence[ExpertSource], is_transposed: bool) -> Layout | Refusal:
    """Return how a part lies in its slots.

    `sources`: of the matrix, and of the bias where there is one. `is_transposed`: the matrix is
    [in, out], and vectors are multiplied by it from the left, as gpt-oss does.
    """
    for source in sources:
        if source.converter is not None:
            return Refusal(f"{source.target} is stored in another order than it is used")
    matrix = sources[0]
    if matrix.dtype not in FLOATS or len(matrix.shape) != 2:
        return Refusal(f"{matrix.target} is no matrix in BF16, F16 or F32")
    found = _matrix(matrix, is_transposed)
    if isinstance(found, Refusal) or len(sources) < 2:
        return found
    return _with_bias(found, sources[1], matrix.expert_nbytes, is_transposed)


def _matrix(source: ExpertSource, is_transposed: bool) -> Layout | Refusal:
    first = source.first[0]
    if any(_kind(other) != _kind(first) for other in source.first):
        return Refusal(f"{source.target} is made of {first.name} and of others unlike it")
    if first.format is None:
        return _plain(source, is_transposed)
    is_turned = isinstance(first.format, Fp4) and first.format.transposed
    if is_turned != is_transposed or is_turned and len(source.first) > 1:
        return Refusal(f"{source.target} has its codes along the other side of the matrix")
    return _coded(source, first.format)


def _kind(weight: Weight) -> tuple[object, ...]:
    return weight.shape, weight.format, [(each.dtype, each.shape) for each in weight.stored]


def _plain(source: ExpertSource, is_transposed: bool) -> Layout | Refusal:
    first, pieces = source.first[0], len(source.first)
    if first.dtype not in FLOATS:
        return Refusal(f"{source.target} is stored in {first.stored[0].dtype}")
    if is_transposed and pieces > 1:
        return Refusal(f"{source.target} is [in, out] and made of {pieces} tensors")
    height, width = source.shape
    rows, columns = (width, height) if is_transposed else (height // pieces, width)
    region = _regions(first, pieces)[0]._replace(dtype=FLOATS[first.dtype])
    strides = (1, width) if is_transposed else (width, 1)
    # A tile of columns lies across the rows of what is transposed: few of them, many rows.
    tile = tile_of(rows if is_transposed else columns, 8 * first.dtype.itemsize)
    if is_transposed:
        tile = tile._replace(rows=tile.columns, columns=tile.rows)
    dtype = FLOATS[source.dtype]
    return Layout(rows, columns, pieces, first.nbytes, region, strides, dtype, tile)


def _coded(source: ExpertSource, form: Format) -> Layout | Refusal:
    if not isinstance(form, Fp8 | Int4 | Fp4):
        return Refusal(f"{source.target} is stored as {type(form).__name__}")
    first, pieces, grid = source.first[0], len(source.first), form.grid
    codes, scales, *more = _regions(first, pieces)
    is_byte = isinstance(form, Fp8)
    rows, columns = grid.shape
    if not is_byte and (columns % 2 or grid.columns < columns and grid.columns % 2):
        return Refusal(f"{source.target} has bytes that two rows or two scales share")
    tile = tile_of(columns, 8 if is_byte else 4, grid.columns)
    name = "E4M3" if is_byte else "INT4" if isinstance(form, Int4) else "E2M1"
    layout = Layout(
        rows=rows,
        columns=columns,
        pieces=pieces,
        piece_nbytes=first.nbytes,
        codes=codes._replace(dtype=name),
        strides=(form.stored[0].nbytes // rows, 1),
        dtype=FLOATS[source.dtype],
        tile=tile,
        scales=_scales(scales, grid),
    )
    if isinstance(form, Int4):
        # Twice to the same type is once.
        rounded = scales.dtype if scales.dtype not in (layout.dtype, "F32") else ""
        return replace(layout, rounded=rounded, zeros=more[0] if more else None)
    if isinstance(form, Fp4):
        return _four_bit_floats(layout, form, more[0] if more else None)
    return layout


def _scales(region: Region, grid: Grid) -> Scales:
    return Scales(region, grid.rows, grid.columns, grid.counts[1])


def _four_bit_floats(layout: Layout, form: Fp4, whole: Region | None) -> Layout:
    assert layout.scales is not None
    rounded = "BF16" if form.to_bfloat16 and layout.dtype != "BF16" else ""
    scales = layout.scales._replace(halved=form.transposed, whole=whole, divides=form.divides)
    return replace(layout, scales=scales, rounded=rounded)


def _with_bias(
    layout: Layout, source: ExpertSource, start: int, is_transposed: bool
) -> Layout | Refusal:
    first = source.first[0]
    if any(not one.is_plain or one.dtype != first.dtype for one in source.first):
        return Refusal(f"{source.target} is not stored as it is")
    if first.dtype not in FLOATS or math.prod(source.shape) != layout.out_rows:
        return Refusal(f"{source.target} is no bias of {layout.out_rows} values")
    alignment = math.gcd(start, SLOT_ALIGNMENT_NBYTES)
    bias = Region(start, FLOATS[first.dtype], alignment)
    return replace(layout, bias=bias, rounds_before_bias=is_transposed)


def _regions(weight: Weight, pieces: int) -> list[Region]:
    """Return where in a piece each stored tensor begins."""
    starts = accumulate((each.extent.nbytes for each in weight.stored), initial=0)
    step = weight.nbytes if pieces > 1 else 0
    return [
        Region(start, stored.dtype, math.gcd(start, step, SLOT_ALIGNMENT_NBYTES))
        for start, stored in zip(starts, weight.stored, strict=False)
    ]
