"""How many rows each expert gets when llama.cpp computes a batch: its kernels depend on that."""

from __future__ import annotations

import ctypes as C
from collections import Counter
from pathlib import Path
from typing import Any

from localmoe.backends.llama.bindings import OP_MUL_MAT_ID, OP_OFFSET, L, Tensor
from zoo.plain import Batch, plain_logits


def rows_per_expert(
    path: Path, batches: list[Batch], *, context: int
) -> dict[str, list[Counter[int]]]:
    """Return for each tensor of experts, and each of these batches, the rows of every expert.

    Experts without rows are not in the counters.
    """
    found: dict[str, list[Counter[int]]] = {}

    def note(node: int, ask: bool, _user: object) -> bool:
        if C.c_int.from_address(node + OP_OFFSET).value != OP_MUL_MAT_ID:
            return not ask
        if not ask:
            sources = Tensor.from_address(node).src
            name = Tensor.from_address(sources[0]).name.decode()
            found.setdefault(name, []).append(_count(Tensor.from_address(sources[2])))
        return True

    callback: Any = L.ggml_backend_sched_eval_callback(note)
    plain_logits(path, batches, context=context, threads=1, eval_callback=callback)
    return found


def _count(ids: Tensor) -> Counter[int]:
    """Count the expert numbers of a tensor of int32 [T, K]; its rows may be apart."""
    row = C.c_int32 * ids.ne[0]
    rows = (row.from_address(ids.data + i * ids.nb[1]) for i in range(ids.ne[1]))
    return Counter(expert for numbers in rows for expert in numbers)
