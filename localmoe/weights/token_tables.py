"""Tables that name the experts of every token, in place of a router's choice (DeepSeek-V4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from localmoe.errors import ModelFormatError
from localmoe.weights.catalog import Catalog
from localmoe.weights.gguf_header import GgufHeader
from localmoe.weights.gguf_tensors import TensorInfo

_SUFFIX = ".ffn_gate_tid2eid.weight"


def check_token_tables(headers: Sequence[GgufHeader], catalog: Catalog) -> None:
    """Read the tables, a few MiB, and refuse expert numbers that no expert has.

    llama.cpp takes them unchecked and aborts when such a token comes. Raises ModelFormatError.
    """
    n_experts = {f"blk.{layer.layer}{_SUFFIX}": layer.n_experts for layer in catalog.layers}
    for header in headers:
        for tensor in header.tensors:
            if tensor.name in n_experts and tensor.type_name == "I32":
                _check_table(header.path, tensor, n_experts[tensor.name])


def _check_table(path: str, tensor: TensorInfo, n_experts: int) -> None:
    with open(path, "rb") as file:
        file.seek(tensor.offset)
        table = np.frombuffer(file.read(tensor.nbytes), "<i4")
    if table.size and not 0 <= table.min() <= table.max() < n_experts:
        raise ModelFormatError(
            f"{path}: {tensor.name} names the experts {table.min()} to {table.max()}, but there "
            f"are only 0 to {n_experts - 1}. The file is damaged."
        )
