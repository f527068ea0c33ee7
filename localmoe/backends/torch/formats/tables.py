"""What codes stand for, as tables on the device where they are looked up."""

from __future__ import annotations

from functools import cache

import torch

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
FOUR_BITS = {
    "e2m1": (*E2M1, *(-value for value in E2M1)),
    "doubled": (*(2 * value for value in E2M1), *(-2 * value for value in E2M1)),
    "int4": tuple(float(code - 8) for code in range(16)),
}


@cache
def pairs(codes: str, device: torch.device) -> torch.Tensor:
    """Return the two F32 values of each byte with two codes, the low half first, as one int64.

    A table for two bytes at a time halves the look-ups, and was no faster in a whole decode: it is
    too large for the first-level cache.
    """
    with torch.inference_mode(False):
        values = torch.tensor(FOUR_BITS[codes], dtype=torch.float32)
        byte = torch.arange(256)
        two = torch.stack([values[byte & 15], values[byte >> 4]], dim=1)
        return two.view(torch.int64).view(-1).to(device)


@cache
def scale_values(dtype: str, device: torch.device) -> torch.Tensor:
    """Return the F32 value of each of the 256 codes of a scale's type: F8_E4M3, F8_E8M0 or U8.

    U8 is an exponent, too, but the formats that use it know no NaN: 255 is 2^128, an infinity.
    "halved" is half of that, all finite, for "doubled" codes.
    """
    with torch.inference_mode(False):
        codes = torch.arange(256, dtype=torch.uint8)
        if dtype == "F8_E4M3":
            return codes.view(torch.float8_e4m3fn).to(device, torch.float32)
        values = torch.ldexp(
            torch.ones(256, dtype=torch.float64),
            codes.to(torch.int64) - (128 if dtype == "halved" else 127),
        )
        if dtype == "F8_E8M0":
            values[255] = torch.nan
        return values.to(device, torch.float32)
