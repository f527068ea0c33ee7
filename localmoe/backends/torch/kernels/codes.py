"""Codes to values, in kernels: the bits of a code are put where a float has them.

Each value is what formats/ decodes, for every code. All of it are operations that every GPU has, and
Triton's interpreter, but for rounding to BF16: that interpreter cuts what it should round.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETS = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def e4m3_values(codes):
    """Return the F32 values of FP8 codes, uint8, over 2^8: those of NaN as 480 and -480."""
    # E4M3's bits in F16's places: F16's exponents are 8 larger.
    bits = (codes.to(tl.int8, bitcast=True).to(tl.int16) << 7) & -0x4080
    return bits.to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def e2m1_values(codes, DOUBLED: tl.constexpr):
    """Return the F32 values of codes of four bits, uint8 below 16: floats with two of exponent.

    Twice of each where `DOUBLED`, for scales that are halved.
    """
    # In F16's places, whose exponents are 14 larger; the smallest become its subnormal numbers.
    bits = ((codes & 7).to(tl.uint16) << 9) | ((codes & 8).to(tl.uint16) << 12)
    return bits.to(tl.float16, bitcast=True).to(tl.float32) * (32768.0 if DOUBLED else 16384.0)


@triton.jit
def int4_values(codes):
    """Return the F32 values of codes of four bits, uint8 below 16: the code less 8."""
    # 2^23 has a last bit of 1: no conversion, of which a GPU does few at a time.
    bits = codes.to(tl.uint32) | 0x4B000000
    return bits.to(tl.float32, bitcast=True) - 8388616.0


@triton.jit
def exponents(codes, HALVED: tl.constexpr):
    """Return 2^(code - 127) of bytes, or half of that; 255 of what is not halved is infinite."""
    wide = codes.to(tl.uint32)
    if HALVED:
        # The two least are below the normal numbers, whose exponent is 1.
        bits = tl.where(wide < 2, (wide + 1) << 21, (wide - 1) << 23)
    else:
        bits = tl.where(wide == 0, 0x400000, wide << 23)
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
