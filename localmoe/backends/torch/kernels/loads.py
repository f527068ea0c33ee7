"""Loads from slots, in kernels: a stored tensor begins wherever the one before it ended.

`base` is a pointer to bytes, `offsets` count values of the type, and what is masked is 0.
"""

from __future__ import annotations

import triton
import triton.language as tl

from localmoe.backends.torch.kernels.codes import e4m3_values, exponents


@triton.jit
def load_16(base, offsets, mask, IS_ALIGNED: tl.constexpr):
    """Return words of two bytes, uint16, one byte at a time where they lie at odd places."""
    if IS_ALIGNED:
        words = tl.load(base.to(tl.pointer_type(tl.uint16)) + offsets, mask=mask, other=0)
    else:
        low = tl.load(base + offsets * 2, mask=mask, other=0).to(tl.uint16)
        high = tl.load(base + offsets * 2 + 1, mask=mask, other=0).to(tl.uint16)
        words = low | (high << 8)
    return words


@triton.jit
def load_32(base, offsets, mask, ALIGNMENT: tl.constexpr):
    """Return words of four bytes, uint32, from smaller ones where their place asks for that."""
    if ALIGNMENT % 4 == 0:
        words = tl.load(base.to(tl.pointer_type(tl.uint32)) + offsets, mask=mask, other=0)
    else:
        low = load_16(base, offsets * 2, mask, ALIGNMENT % 2 == 0).to(tl.uint32)
        high = load_16(base, offsets * 2 + 1, mask, ALIGNMENT % 2 == 0).to(tl.uint32)
        words = low | (high << 16)
    return words


@triton.jit
def load_floats(base, offsets, mask, DTYPE: tl.constexpr, ALIGNMENT: tl.constexpr):
    """Return values of type BF16, F16 or F32 as F32."""
    if DTYPE == "F32":
        values = load_32(base, offsets, mask, ALIGNMENT).to(tl.float32, bitcast=True)
    elif DTYPE == "F16":
        words = load_16(base, offsets, mask, ALIGNMENT % 2 == 0)
        values = words.to(tl.float16, bitcast=True).to(tl.float32)
    else:
        words = load_16(base, offsets, mask, ALIGNMENT % 2 == 0)
        values = (words.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return values


@triton.jit
def load_scales(base, offsets, mask, LAYOUT: tl.constexpr):
    """Return scales as F32, exactly: floats, or bytes that stand for them."""
    if LAYOUT.scales.region.dtype == "F8_E4M3":
        codes = tl.load(base + offsets, mask=mask, other=0).to(tl.uint32)
        values = tl.where((codes & 0x7F) == 0x7F, float("nan"), e4m3_values(codes) * 256.0)
    elif LAYOUT.scales.region.dtype == "F8_E8M0":
        codes = tl.load(base + offsets, mask=mask, other=0).to(tl.uint32)
        values = tl.where(codes == 255, float("nan"), exponents(codes, False))
    elif LAYOUT.scales.region.dtype == "U8":
        codes = tl.load(base + offsets, mask=mask, other=0).to(tl.uint32)
        values = exponents(codes, LAYOUT.scales.halved)
    else:
        region: tl.constexpr = LAYOUT.scales.region
        values = load_floats(base, offsets, mask, region.dtype, region.alignment)
    return values
