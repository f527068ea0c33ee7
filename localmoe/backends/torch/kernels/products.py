"""Kernels: rows of packed matrices, each in its slot, times vectors.

A program computes a tile of rows for one pair of slot and vector, over all columns, in one order:
products are added up place by place of the tile first, and the places in the end. It knows neither
how many pairs there are nor which slots, so neither changes a bit.

Addresses are of 64 bits, a place within a row has 32. Rows beyond the last one
are read as the last one is, and not written.
"""

from __future__ import annotations

import triton
import triton.language as tl

from localmoe.backends.torch.kernels.codes import (
    e2m1_values,
    e4m3_values,
    int4_values,
    narrowed,
    rounded,
)
from localmoe.backends.torch.kernels.loads import load_floats, load_scales


@triton.jit
def multiply_plain(memory, stride, pairs, x, out, LAYOUT: tl.constexpr):
    """Multiply matrices that are stored as they are, by rows or by columns.

    `memory`: where slot 0 begins; `pairs`: slots and rows of `x`, int32 [P] each; `x` is
    [T, columns], `out` [P, rows of all pieces].
    """
    slot, base, row, pair, inputs = places(memory, stride, pairs, x, LAYOUT)
    base += LAYOUT.codes.start
    ROWS: tl.constexpr = LAYOUT.tile.rows
    COLUMNS: tl.constexpr = LAYOUT.tile.columns
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(0, LAYOUT.column_tiles):
        column = step * COLUMNS + tl.arange(0, COLUMNS)
        is_there = column < LAYOUT.columns
        down, across = row.to(tl.int64) * LAYOUT.strides[0], column.to(tl.int64) * LAYOUT.strides[1]
        mask = (row < LAYOUT.rows)[:, None] & is_there[None, :]
        offsets = down[:, None] + across[None, :]
        weights = load_floats(base, offsets, mask, LAYOUT.codes.dtype, LAYOUT.codes.alignment)
        vector = load_floats(inputs, column, is_there, LAYOUT.dtype, LAYOUT.input_alignment)
        if LAYOUT.codes.dtype != LAYOUT.dtype:
            weights = rounded(weights, LAYOUT.dtype)
        total += weights * vector[None, :]
    store(tl.sum(total, axis=1), slot, row, pair, out, LAYOUT)


@triton.jit
def multiply_coded(memory, stride, pairs, x, out, LAYOUT: tl.constexpr):
    """Multiply matrices of codes with scales. Arguments are those of `multiply_plain`."""
    slot, base, row, pair, inputs = places(memory, stride, pairs, x, LAYOUT)
    codes = base + LAYOUT.codes.start
    row_read = tl.minimum(row, LAYOUT.rows - 1)
    row_start = row_read.to(tl.int64) * LAYOUT.strides[0]
    ROWS: tl.constexpr = LAYOUT.tile.rows
    UNIT: tl.constexpr = LAYOUT.tile.unit
    UNITS: tl.constexpr = LAYOUT.tile.columns // UNIT
    BYTES: tl.constexpr = UNIT // 2 if LAYOUT.has_two_codes_a_byte else UNIT
    total = tl.zeros((ROWS, UNITS, BYTES), tl.float32)
    for step in range(0, LAYOUT.column_tiles):
        unit = step * UNITS + tl.arange(0, UNITS)
        byte = step * (UNITS * BYTES) + tl.arange(0, UNITS * BYTES)
        column = step * (UNITS * UNIT) + tl.arange(0, UNITS * UNIT)
        scales = scales_of(base, row_read, unit, LAYOUT)
        zeros = zeros_of(base, row_read, unit, LAYOUT)
        offsets = row_start[:, None] + byte[None, :]
        if LAYOUT.is_ragged:
            # What is beyond has codes, scales and inputs of 0.
            mask = byte < LAYOUT.columns * BYTES // UNIT
            found = tl.load(codes + offsets, mask=mask[None, :], other=0)
        else:
            found = tl.load(codes + offsets)
        is_there = column < LAYOUT.columns
        vector = load_floats(inputs, column, is_there, LAYOUT.dtype, LAYOUT.input_alignment)
        found = tl.reshape(found, (ROWS, UNITS, BYTES)).to(tl.uint32)
        if LAYOUT.has_two_codes_a_byte:
            low, high = tl.split(tl.reshape(vector, (UNITS, BYTES, 2)))
            total += terms(found, scales, zeros, low, LAYOUT)
            total += terms(found >> 4, scales, zeros, high, LAYOUT)
        else:
            total += terms(found, scales, zeros, tl.reshape(vector, (UNITS, BYTES)), LAYOUT)
    store(tl.sum(tl.sum(total, axis=2), axis=1), slot, row, pair, out, LAYOUT)


@triton.jit
def places(memory, stride, pairs, x, LAYOUT: tl.constexpr):
    """Return what this program works on.

    Where slot and piece begin; the rows of the piece that are this tile's; the pair's number, and
    where its vector begins.
    """
    tile, pair = tl.program_id(0), tl.program_id(1).to(tl.int64)
    slot = memory + tl.load(pairs[0] + pair).to(tl.int64) * stride
    base = slot
    if LAYOUT.pieces > 1:  # else what divides addresses would be lost
        base += (tile // LAYOUT.row_tiles).to(tl.int64) * LAYOUT.piece_nbytes
    row = (tile % LAYOUT.row_tiles) * LAYOUT.tile.rows + tl.arange(0, LAYOUT.tile.rows)
    inputs = x + tl.load(pairs[1] + pair).to(tl.int64) * LAYOUT.columns
    return slot, base, row, pair, inputs.to(tl.pointer_type(tl.uint8))


@triton.jit
def scales_of(base, row, unit, LAYOUT: tl.constexpr):
    """Return the scale of each row and unit of columns, [rows, units, 1]."""
    start = base + LAYOUT.scales.region.start
    block = unit * LAYOUT.tile.unit // LAYOUT.scales.columns
    first = (row // LAYOUT.scales.rows).to(tl.int64) * LAYOUT.scales.per_row
    offsets = first[:, None] + block[None, :]
    is_there = (unit * LAYOUT.tile.unit < LAYOUT.columns)[None, :]
    scales = load_scales(start, offsets, is_there, LAYOUT)
    if LAYOUT.codes.dtype == "E4M3":
        scales = scales * 256.0
    if LAYOUT.scales.whole is not None:
        whole = load_floats(
            base + LAYOUT.scales.whole.start, 0, True, "F32", LAYOUT.scales.whole.alignment
        )
        if LAYOUT.scales.divides:
            # The operator divides approximately.
            scales = tl.div_rn(scales, tl.broadcast_to(whole, scales.shape))
        else:
            scales = scales * whole
    return scales[:, :, None]


@triton.jit
def zeros_of(base, row, unit, LAYOUT: tl.constexpr):
    """Return zero points like `scales_of`, 0 where there are none.

    A word of four bytes holds those of eight rows.
    """
    if LAYOUT.zeros is None:
        zeros = tl.zeros((1, 1), tl.float32)
    else:
        block = unit * LAYOUT.tile.unit // LAYOUT.scales.columns
        first = (row // 8).to(tl.int64) * LAYOUT.scales.per_row
        word = first[:, None] + block[None, :]
        is_there = (unit * LAYOUT.tile.unit < LAYOUT.columns)[None, :]
        offsets = word * 4 + (row % 8 // 2)[:, None]
        packed = tl.load(base + LAYOUT.zeros.start + offsets, mask=is_there, other=0)
        code = packed.to(tl.uint32) >> (row % 2 * 4).to(tl.uint32)[:, None]
        zeros = int4_values(code)
    return zeros[:, :, None]


@triton.jit
def terms(codes, scales, zeros, vector, LAYOUT: tl.constexpr):
    """Return weights times inputs; `vector` is [units, bytes]."""
    if LAYOUT.codes.dtype == "E4M3":
        values = e4m3_values(codes)
    elif LAYOUT.codes.dtype == "INT4":
        values = int4_values(codes) - zeros
    else:
        values = e2m1_values(codes, LAYOUT.scales.halved)
    weights = rounded(rounded(values * scales, LAYOUT.rounded), LAYOUT.dtype)
    return weights * vector[None, :, :]


@triton.jit
def store(sums, slot, row, pair, out, LAYOUT: tl.constexpr):
    """Add the bias, if any, and write the sums of the rows of one tile."""
    is_there = row < LAYOUT.rows
    place = (tl.program_id(0) // LAYOUT.row_tiles).to(tl.int64) * LAYOUT.rows + row
    if LAYOUT.bias is not None:
        if LAYOUT.rounds_before_bias:
            sums = rounded(sums, LAYOUT.dtype)
        region: tl.constexpr = LAYOUT.bias
        bias = load_floats(slot + region.start, place, is_there, region.dtype, region.alignment)
        sums += rounded(bias, LAYOUT.dtype)
    target = out + pair * (LAYOUT.pieces * LAYOUT.rows) + place
    tl.store(target, narrowed(sums, LAYOUT.dtype), mask=is_there)
