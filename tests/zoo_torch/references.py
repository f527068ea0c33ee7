"""Decodes stored weights with each format's own library, to compare localmoe's bits with."""

from __future__ import annotations

import torch
from compressed_tensors.compressors import BaseCompressor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from zoo_torch.formats import COMPRESSED, E2M1, FP8, PLAIN


def reference(
    name: str, stored: dict[str, torch.Tensor], format_name: str, dtype: torch.dtype
) -> torch.Tensor:
    """Return the whole decoded weight in a compute type."""
    if format_name in PLAIN:
        return stored[name].to(dtype)
    if format_name == "mxfp4":
        blocks, scales = stored[f"{name}_blocks"], stored[f"{name}_scales"]
        experts: torch.Tensor = convert_moe_packed_tensors(blocks, scales, dtype=dtype)
        return experts
    stem = name.removesuffix(".weight")
    parts = {full.removeprefix(f"{stem}."): tensor for full, tensor in stored.items()}
    if format_name in COMPRESSED:
        return _decompressed(parts, format_name).to(dtype)
    if format_name in FP8:
        return fp8_blocks(parts["weight"], parts["weight_scale_inv"], dtype)
    if format_name == "fp8-modelopt":
        return (parts["weight"].float() * parts["weight_scale"]).to(dtype)
    # Of the arithmetic of ModelOpt's NVFP4QTensor.dequantize; it has no minus zero.
    values = torch.tensor((*E2M1, *(-value for value in E2M1)))
    codes = torch.stack([parts["weight"] & 15, parts["weight"] >> 4], dim=-1).flatten(-2)
    scales = parts["weight_scale"].float() * parts["weight_scale_2"]
    groups = values[codes.long()].view(*scales.shape, 16)
    decoded: torch.Tensor = (groups * scales[..., None]).flatten(-2).to(dtype)
    return decoded


def fp8_blocks(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return transformers' decoded blocks of 128x128, the last ones filled up before and cut after.

    Left to itself it takes the number of scales for a divisor, and is wrong where blocks are cut.
    """
    rows, columns = codes.shape
    padding = (0, -columns % 128, 0, -rows % 128)
    full = torch.nn.functional.pad(codes.view(torch.uint8), padding).view(codes.dtype)
    decoded: torch.Tensor = Fp8Dequantize(None)._dequantize_one(full, scales, dtype)
    return decoded[:rows, :columns]


def _decompressed(parts: dict[str, torch.Tensor], format_name: str) -> torch.Tensor:
    packed = COMPRESSED[format_name]
    if format_name.startswith("fp8"):  # in F32: rounded once, to the compute type
        parts = {**parts, "weight_scale": parts["weight_scale"].float()}
    compressor = BaseCompressor.get_value_from_registry(packed.form)
    weight: torch.Tensor = compressor.decompress(parts, packed.scheme)["weight"]
    return weight
