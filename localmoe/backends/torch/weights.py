"""The weights of a checkpoint by the names that models know, however they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from localmoe.backends.torch.weight import DTYPES, Weight
from localmoe.errors import UnsupportedModelError
from localmoe.weights.safetensors import StoredTensor


def find_weights(
    tensors: Mapping[str, StoredTensor], quantization: Mapping[str, Any], dtype: torch.dtype
) -> dict[str, Weight]:
    """Return the weights that stored tensors make up, by name.

    `dtype` is what encoded weights are decoded to. Raises ModelFormatError, UnsupportedModelError.
    """
    found = {}
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise UnsupportedModelError(
                f"{name} is of type {tensor.dtype}, which this engine cannot use"
            )
        found[name] = Weight(name, (tensor,), tensor.shape, DTYPES[tensor.dtype])
    return found
