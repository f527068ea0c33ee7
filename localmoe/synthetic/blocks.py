"""Random weights of any ggml type, with a given deviation, as fast as random bytes can be had."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from localmoe.errors import SettingsError
from localmoe.weights.ggml_types import GGML_TYPES

Bytes = npt.NDArray[np.uint8]
_TYPES = {each.name: each for each in GGML_TYPES.values()}
_SAMPLE_BLOCKS = 512


@dataclass(frozen=True)
class _Scale:
    """Where a block keeps its scale (float16), and its offset with what centres the weights."""

    at: int
    offset_at: int | None = None
    offset_share: float = 0.0


_SCALES = {
    **{"Q4_0": _Scale(0), "Q5_0": _Scale(0), "Q8_0": _Scale(0), "IQ4_NL": _Scale(0)},
    **{"Q5_1": _Scale(0, 2, -15.5), "Q4_1": _Scale(0, 2, -7.5)},
    **{"Q2_K": _Scale(80, 82, 1.5), "Q3_K": _Scale(108), "Q6_K": _Scale(208)},
    **{"Q4_K": _Scale(0, 2, 7.5), "Q5_K": _Scale(0, 2, 15.5)},
    **{"IQ4_XS": _Scale(0), "IQ2_XXS": _Scale(0), "IQ2_XS": _Scale(0), "IQ2_S": _Scale(0)},
    **{"IQ3_XXS": _Scale(0), "IQ3_S": _Scale(0), "IQ1_S": _Scale(0)},
}


def random_blocks(type_name: str, n_elements: int, std: float, rng: np.random.Generator) -> Bytes:
    """Return the bytes of so many random numbers around zero, [nbytes].

    Raises SettingsError for a type that cannot be made up.
    """
    if type_name in ("F32", "F16", "BF16"):
        return _floats(type_name, n_elements, std, rng)
    kind = _TYPES[type_name]
    n_blocks = n_elements // kind.block_elements
    blocks = np.frombuffer(rng.bytes(n_blocks * kind.block_nbytes), np.uint8).copy()
    blocks = blocks.reshape(n_blocks, kind.block_nbytes)
    _set_scale(blocks, type_name, std / _unit_std(type_name))
    return blocks.reshape(-1)


def _floats(type_name: str, n_elements: int, std: float, rng: np.random.Generator) -> Bytes:
    numbers = rng.standard_normal(n_elements, np.float32) * np.float32(std)
    if type_name == "BF16":
        return (numbers.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    return numbers.astype(np.float16 if type_name == "F16" else np.float32).view(np.uint8)


def _set_scale(blocks: Bytes, type_name: str, scale: float) -> None:
    if type_name == "MXFP4":
        blocks[:, 0] = np.clip(np.round(np.log2(scale)) + 127, 1, 254)
        return
    if type_name not in _SCALES:
        raise SettingsError(f"no random weights of type {type_name} can be made")
    field = _SCALES[type_name]
    _put(blocks, field.at, scale)
    if field.offset_at is not None:
        _put(blocks, field.offset_at, scale * field.offset_share)


def _put(blocks: Bytes, at: int, value: float) -> None:
    blocks[:, at : at + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)


@lru_cache
def _unit_std(type_name: str) -> float:
    """Return the deviation of random blocks whose scale is one, by gguf's own decoder."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    kind = _TYPES[type_name]
    rng = np.random.Generator(np.random.SFC64(0))
    blocks = np.frombuffer(rng.bytes(_SAMPLE_BLOCKS * kind.block_nbytes), np.uint8).copy()
    blocks = blocks.reshape(_SAMPLE_BLOCKS, kind.block_nbytes)
    _set_scale(blocks, type_name, 1.0)
    return float(dequantize(blocks, GGMLQuantizationType[type_name]).std())
