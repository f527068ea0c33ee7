"""Codes to values, in kernels: the bits of a code are put where a float has them.

Each value is what formats/ decodes, for every code. Every GPU has these operations, and so does
Triton's interpreter, but for rounding to BF16: it cuts instead.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETS = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def e4m3_values(codes):
    """Return the F32 values of FP8 codes, uint32, over 2^8: those of NaN as 480 and -480."""
    # In F32's places, whose exponents are 120 larger: the smallest become its subnormal numbers.
    bits = ((codes << 24).to(tl.int32, bitcast=True) >> 4) & -0x78100000
    return bits.to(tl.float32, bitcast=True) * 2.0**112


@triton.jit
def e2m1_values(codes, DOUBLED: tl.constexpr):
    """Return the F32 values of the lowest four bits, uint32: floats with two of exponent.

    Twice of each where `DOUBLED`, for scales that are halved.
    """
    bits = ((codes << 28).to(tl.int32, bitcast=True) >> 6) & -0x7E400000  # as above, 126 larger
    return bits.to(tl.float32, bitcast=True) * (2.0**127 if DOUBLED else 2.0**126)


@triton.jit
def int4_values(codes):
    """Return the F32 values of the lowest four bits, uint32: what they say less 8."""
    # 2^23 has a last bit of 1: no conversion, of which a GPU does few at a time.
    return ((codes & 15) | 0x4B000000).to(tl.float32, bitcast=True) - 8388616.0


@triton.jit
def exponents(codes, HALVED: tl.constexpr):
    """Return 2^(code - 127) of bytes, uint32, or half of that; 255 not halved is infinite."""
    if HALVED:
        # The two least are below the normal numbers, whose exponent is 1.
        bits = tl.where(codes < 2, (codes + 1) << 21, (codes - 1) << 23)
    else:
        bits = tl.where(codes == 0, 0x400000, codes << 23)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def narrowed(values, DTYPE: tl.constexpr):
    """Return F32 values rounded to the nearest ones of type BF16 or F16; F32 as they are."""
    if DTYPE == "BF16":
        if INTERPRETS:
            bits = values.to(tl.uint32, bitcast=True)
            near = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.uint16)
            near = tl.where(values == values, near, 0x7FC0).to(tl.uint16)
            values = near.to(tl.bfloat16, bitcast=True)
        else:
            values = values.to(tl.bfloat16)
    elif DTYPE == "F16":
        values = values.to(tl.float16)
    return values


@triton.jit
def rounded(values, DTYPE: tl.constexpr):
    """Return F32 values rounded to BF16 or F16, as F32 again; as they are for any other type."""
    if DTYPE == "BF16":
        bits = narrowed(values, "BF16").to(tl.uint16, bitcast=True)
        values = (bits.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif DTYPE == "F16":
        values = values.to(tl.float16).to(tl.float32)
    return values
