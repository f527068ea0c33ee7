"""How many rows each expert gets when llama.cpp computes a batch: its kernels depend on that."""

from __future__ import annotations

import ctypes as C
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from localmoe.backends.llama import parameters
from localmoe.backends.llama.bindings import OP_MUL_MAT_ID, OP_OFFSET, L, Tensor
from localmoe.weights.shards import read_shards

LayerRows = dict[str, Counter[int]]
"""Rows of each expert that has any, by the name of the tensor of experts."""


def rows_per_expert(path: Path, batches: list[list[int]], *, context: int) -> list[LayerRows]:
    """Decode these batches one after the other; return what each of them routed where."""
    found: list[LayerRows] = []
    L.llama_backend_init()
    model = parameters.open_model([header.path for header in read_shards(path)])
    longest = max(map(len, batches))
    handle = parameters.open_context(
        model,
        context_tokens=context,
        chunk_tokens=longest,
        threads=1,
        eval_callback=(callback := _recorder(lambda: found[-1])),
    )
    batch = L.llama_batch_init(longest, 0, 1)
    position = 0
    for tokens in batches:
        found.append({})
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position + i, True
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        position += len(tokens)
        assert L.llama_decode(handle, batch) == 0
    L.llama_batch_free(batch)
    L.llama_free(handle)
    L.llama_model_free(model)
    del callback
    return found


def _recorder(current: Callable[[], LayerRows]) -> object:
    """Return an evaluation callback that notes the experts of each product."""

    def note(node: int, ask: bool, _user: object) -> bool:
        if C.c_int.from_address(node + OP_OFFSET).value != OP_MUL_MAT_ID:
            return not ask
        if not ask:
            product = Tensor.from_address(node)
            name = Tensor.from_address(product.src[0]).name.decode()
            ids = Tensor.from_address(product.src[2])
            row = C.c_int32 * ids.ne[0]
            rows = (row.from_address(ids.data + i * ids.nb[1]) for i in range(ids.ne[1]))
            current()[name] = Counter(expert for numbers in rows for expert in numbers)
        return True

    callback: object = L.ggml_backend_sched_eval_callback(note)
    return callback
