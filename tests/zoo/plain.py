"""Plain llama.cpp on the same file: what an engine on top of it must reproduce."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest

L: Any = llama_cpp
Batch = tuple[list[int], list[bool]]
"""Tokens, and for each whether its logits are wanted."""


def open_llama(path: Path, **options: Any) -> Any:
    """Return llama-cpp-python's own model, with logits for every token.

    In the file's own layout: where the processor has AMX, its kernels may end the process with an
    illegal instruction. The class has no option for that, so it gets other defaults.
    """
    defaults = llama_cpp.llama_model_default_params

    def own_layout() -> Any:
        params = defaults()
        params.use_extra_bufts = False
        return params

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", own_layout)
        return llama_cpp.Llama(
            str(path), n_threads=1, n_threads_batch=1, logits_all=True, verbose=False, **options
        )


def plain_logits(
    path: Path, batches: list[Batch], *, context: int, threads: int, eval_callback: Any = None
) -> npt.NDArray[np.float32]:
    """Decode these batches one after the other; return the logits asked for, float32 [n, V].

    `eval_callback` is llama.cpp's: asked before graph nodes, called after those it wants to see.
    Weights in the file's own layout: repacked ones round differently.
    """
    model_params = L.llama_model_default_params()
    model_params.n_gpu_layers, model_params.use_extra_bufts = 0, False
    model = L.llama_model_load_from_file(str(path).encode(), model_params)
    assert model, f"llama.cpp does not load {path.name}"
    longest = max(len(tokens) for tokens, _ in batches)
    params = L.llama_context_default_params()
    params.n_ctx, params.n_seq_max = context, 1
    params.n_batch = params.n_ubatch = params.n_outputs_max = longest
    params.n_threads = params.n_threads_batch = threads
    if eval_callback is not None:
        params.cb_eval = eval_callback
    handle = L.llama_init_from_model(model, params)
    assert handle, f"llama.cpp makes no context for {path.name}"
    batch = L.llama_batch_init(longest, 0, 1)
    n_vocab = L.llama_vocab_n_tokens(L.llama_model_get_vocab(model))
    rows, position = [], 0
    for tokens, wanted in batches:
        _fill(batch, tokens, wanted, position)
        position += len(tokens)
        assert L.llama_decode(handle, batch) == 0
        if any(wanted):
            logits = np.ctypeslib.as_array(L.llama_get_logits(handle), (sum(wanted), n_vocab))
            rows.append(logits.astype(np.float32))  # a copy: the next batch overwrites it
    L.llama_batch_free(batch)
    L.llama_free(handle)
    L.llama_model_free(model)
    return np.concatenate(rows)


def _fill(batch: Any, tokens: list[int], wanted: list[bool], position: int) -> None:
    batch.n_tokens = len(tokens)
    for i, (token, flag) in enumerate(zip(tokens, wanted, strict=True)):
        batch.token[i], batch.pos[i], batch.logits[i] = token, position + i, flag
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
