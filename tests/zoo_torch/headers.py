"""What a safetensors header would say of tensors in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

NAMES = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int32: "I32",
    torch.int64: "I64",
}


class HeaderTensor(NamedTuple):
    """A tensor's entry: its type as safetensors names it, and its shape."""

    dtype: str
    shape: tuple[int, ...]


def header_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, HeaderTensor]:
    """Return the entries of these tensors."""
    return {name: HeaderTensor(NAMES[t.dtype], tuple(t.shape)) for name, t in tensors.items()}
