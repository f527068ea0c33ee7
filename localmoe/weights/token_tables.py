"""Tables that name the experts of every token, in place of a router's choice (DeepSeek-V4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from localmoe.errors import ModelFormatError
from localmoe.weights.catalog import Catalog
from localmoe.weights.gguf_header import GgufHeader, read_bytes
from localmoe.weights.gguf_tensors import TensorInfo

_SUFFIX = ".ffn_gate_tid2eid.weight"
_STEP_NBYTES = 4 << 20


def check_token_tables(headers: Sequence[GgufHeader], catalog: Catalog) -> None:
    """Read the tables, a few MiB, and refuse expert numbers that no expert has.

    llama.cpp takes them unchecked and aborts when such a token comes. Raises ModelFormatError,
    ModelNotFoundError.
    """
    n_experts = {f"blk.{layer.layer}{_SUFFIX}": layer.n_experts for layer in catalog.layers}
    for header in headers:
        for tensor in header.tensors:
            if tensor.name in n_experts:
                _check_table(header, tensor, n_experts[tensor.name])


def _check_table(header: GgufHeader, tensor: TensorInfo, n_experts: int) -> None:
    """Check it piece by piece: a damaged header may call the whole file a table."""
    for start in range(0, tensor.nbytes, _STEP_NBYTES):
        nbytes = min(_STEP_NBYTES, tensor.nbytes - start)
        table = np.frombuffer(read_bytes(header, tensor.offset + start, nbytes), "<i4")
        if not 0 <= table.min() <= table.max() < n_experts:
            raise ModelFormatError(
                f"{header.path}: {tensor.name} names the experts {table.min()} to {table.max()}, "
                f"but there are only 0 to {n_experts - 1}. The file is damaged."
            )
