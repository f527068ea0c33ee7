"""Random matrices as ggml blocks: quantised where gguf can do it, else random valid blocks."""

from __future__ import annotations

import zlib
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

Bytes = npt.NDArray[np.uint8]

_SCALE_AT: dict[str, tuple[int, int | None]] = {
    "Q1_0": (0, None),
    "Q2_K": (80, 82),
    "Q3_K": (108, None),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208, None),
    "IQ2_XXS": (0, None),
    "IQ2_XS": (0, None),
    "IQ2_S": (0, None),
    "IQ3_XXS": (0, None),
    "IQ3_S": (0, None),
    "IQ1_S": (0, None),
    "IQ4_NL": (0, None),
    "IQ4_XS": (0, None),
}
"""Where the float16 scale and, if there is one, the float16 minimum of a block lie."""
_RANDOM_BLOCKS = frozenset((*_SCALE_AT, "IQ1_M", "NVFP4"))
_IQ1_M_SCALES = slice(48, 56)
"""Four words; the highest four bits of each are a quarter of the block's float16 scale."""
_NVFP4_SCALES = slice(0, 4)
"""One E4M3 byte without sign for every 16 weights."""


def generator(seed: int, name: str) -> np.random.Generator:
    """Return random numbers that depend on the seed and the name only, not on call order."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def encode(values: npt.NDArray[np.float32], type_name: str) -> npt.NDArray[Any]:
    """Return `values` in a ggml type, rows along the last axis.

    Types that gguf cannot quantise get random blocks of the same deviation: valid weights, but
    not these. Floats stay an array of numbers, everything else becomes bytes.
    """
    kind = GGMLQuantizationType[type_name]
    if kind == GGMLQuantizationType.F32:
        return values
    if kind == GGMLQuantizationType.F16:
        return values.astype(np.float16)
    if type_name in _RANDOM_BLOCKS:
        return _random_blocks(values, type_name)
    encoded: npt.NDArray[Any] = quants.quantize(values, kind)
    return encoded


def _random_blocks(values: npt.NDArray[np.float32], type_name: str) -> Bytes:
    weights, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[type_name]]
    if values.shape[-1] % weights:
        raise ValueError(f"rows of {type_name} hold multiples of {weights}, not {values.shape[-1]}")
    seed = zlib.crc32(values.tobytes())
    blocks = np.random.default_rng(seed).integers(
        0, 256, (values.size // weights, nbytes), dtype=np.uint8
    )
    deviation, ratio = _unit_block(type_name)
    scale = float(values.std()) / deviation
    _set_scales(blocks, type_name, scale, scale * ratio)
    return blocks.reshape(*values.shape[:-1], values.shape[-1] // weights * nbytes)


def _set_scales(blocks: Bytes, type_name: str, scale: float, minimum: float) -> None:
    if type_name == "IQ1_M":
        words = blocks[:, _IQ1_M_SCALES].view("<u2")
        quarters = np.float16(scale).view(np.uint16) >> np.arange(0, 16, 4, dtype=np.uint16)
        words[:] = words & 0x0FFF | quarters << 12
        return
    if type_name == "NVFP4":
        factors = 0.5 + blocks[:, _NVFP4_SCALES] / 256
        blocks[:, _NVFP4_SCALES] = quants.NVFP4.fp32_to_ue4m3(scale * factors)
        return
    scale_at, minimum_at = _SCALE_AT[type_name]
    blocks[:, scale_at : scale_at + 2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
    if minimum_at is not None:
        low = np.float16(minimum)
        blocks[:, minimum_at : minimum_at + 2] = np.frombuffer(low.tobytes(), np.uint8)


@cache
def _unit_block(type_name: str) -> tuple[float, float]:
    """Return the deviation of random blocks of scale 1, and the minimum that centres them."""
    if type_name == "Q1_0":  # which gguf cannot decode: every weight is the scale or minus it
        return 1.0, 0.0
    kind = GGMLQuantizationType[type_name]
    nbytes = GGML_QUANT_SIZES[kind][1]
    blocks = np.random.default_rng(0).integers(0, 256, (64, nbytes), dtype=np.uint8)

    def decoded(scale: float, minimum: float) -> npt.NDArray[np.float32]:
        _set_scales(blocks, type_name, scale, minimum)
        values: npt.NDArray[np.float32] = quants.dequantize(blocks, kind)
        return values

    if _SCALE_AT.get(type_name, (0, None))[1] is None:
        return float(decoded(1, 0).std()), 0.0
    ratio = -float(decoded(1, 0).mean()) / float(decoded(0, 1).mean())
    return float(decoded(1, ratio).std()), ratio
