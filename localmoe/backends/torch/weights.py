"""The weights of a checkpoint by the names that models know, however they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from localmoe.backends.torch.formats import DTYPES, format_of
from localmoe.backends.torch.weight import Weight
from localmoe.errors import ModelFormatError, UnsupportedModelError
from localmoe.weights.safetensors import StoredTensor

_CODES = {".weight_packed": ".weight", "_blocks": ""}
"""What a tensor of codes is called after, where that is not the weight itself."""
_BESIDE = (
    *(".weight_scale", ".weight_global_scale", ".weight_shape", ".weight_zero_point"),
    *(".weight_scale_2", ".weight_scale_inv", "_scale_inv", "_scales"),
)
"""What stands beside codes, and is part of a weight."""
_UNUSED = (
    *(".input_scale", ".input_global_scale", ".activation_scale", ".output_scale"),
    *(".k_scale", ".v_scale", ".q_scale"),
)
"""For computing in fewer bits, which is not done here."""


def find_weights(
    tensors: Mapping[str, StoredTensor], quantization: Mapping[str, Any], dtype: torch.dtype
) -> dict[str, Weight]:
    """Return the weights that stored tensors make up, by name.

    `dtype` is what encoded weights are decoded to. Raises ModelFormatError, UnsupportedModelError.
    """
    found: dict[str, Weight] = {}
    used: set[str] = set()
    for name, tensor in tensors.items():
        codes = next((end for end in _CODES if name.endswith(end)), None)
        encoded = name.removesuffix(codes) + _CODES[codes] if codes else name
        if codes or (tensor.dtype in ("F8_E4M3", "U8") and _has_scales(name, tensors)):
            found[encoded] = _encoded(encoded, codes, tensor, tensors, (quantization, dtype))
            used.update(stored.name for stored in found[encoded].stored)
    for name, tensor in tensors.items():
        if name in used or name.endswith(_UNUSED) or _is_beside(name, found):
            continue
        found[name] = _plain(name, tensor)
    return found


def _has_scales(name: str, tensors: Mapping[str, StoredTensor]) -> bool:
    return any(f"{name}{end}" in tensors for end in ("_scale", "_scale_inv", "_scale_2"))


def _is_beside(name: str, found: Mapping[str, Weight]) -> bool:
    """Whether a tensor belongs to a weight that is encoded, and is not needed to decode it."""
    for end in _BESIDE:
        if name.endswith(end):
            stem = name.removesuffix(end)
            return stem in found or f"{stem}.weight" in found
    return False


def _encoded(
    name: str,
    codes: str | None,
    tensor: StoredTensor,
    tensors: Mapping[str, StoredTensor],
    wanted: tuple[Mapping[str, Any], torch.dtype],
) -> Weight:
    quantization, dtype = wanted
    is_stacked = len(tensor.shape) == (4 if codes == "_blocks" else 3)
    form = format_of(name, tensors, quantization, stacked=is_stacked)
    stored = tuple(tensors[each] for each in form.tensor_names(name))
    shape = (tensor.shape[0], *form.shape) if is_stacked else form.shape
    if is_stacked and any(each.shape[:1] != tensor.shape[:1] for each in stored):
        raise ModelFormatError(
            f"{name} is stored in tensors for different numbers of experts: "
            + ", ".join(f"{each.name} {each.shape}" for each in stored)
        )
    return Weight(name, stored, shape, dtype, form)


def _plain(name: str, tensor: StoredTensor) -> Weight:
    if tensor.dtype not in DTYPES:
        raise UnsupportedModelError(
            f"{name} is of type {tensor.dtype}, which this engine cannot use"
        )
    return Weight(name, (tensor,), tensor.shape, DTYPES[tensor.dtype])
