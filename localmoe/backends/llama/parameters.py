"""llama.cpp's parameter structures, filled the same way for the dry run and the real one."""

from __future__ import annotations

import ctypes as C
from collections.abc import Mapping, Sequence
from typing import Any

from localmoe.backends.llama import log
from localmoe.backends.llama.bindings import BufferOverride, L
from localmoe.errors import EngineError, ModelFormatError
from localmoe.settings import KvType

_GGML_TYPES: Mapping[KvType, int] = {"f16": 1, "q4_0": 2, "q8_0": 8}
_OVERRIDE_INT = 0  # LLAMA_KV_OVERRIDE_TYPE_INT
WHOLE_WINDOWS = True
"""Whether layers with a window keep all that they have read, and not just what they still see.

It takes the memory of full attention. Without it, who goes back (to an edited message, or before a
thought that the template drops) would read the whole prompt again.
"""
_LOAD_MODE_NONE, _LOAD_MODE_MMAP = 0, 1
_LAZY_MODE_OFF = 0  # a large tensor would be mapped from the skeleton, which has no data
_OUTPUT_NBYTES = 64 << 20
SAMPLING_KEYS = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
}
"""What checkpoints call their sampling values, and what we do."""
EvalCallback = tuple[Any, int | None]
"""A function that the scheduler calls with graph nodes, and what else it gets."""


def output_limit(n_vocab: int, chunk_tokens: int) -> int:
    """Return how many rows of logits one step may produce: their buffers grow with each."""
    return max(1, min(chunk_tokens, _OUTPUT_NBYTES // (4 * n_vocab)))


def open_model(
    paths: Sequence[str],
    *,
    overrides: C.Array[BufferOverride] | None = None,
    dry: bool = False,
    experts_used: tuple[str, int] | None = None,
) -> int:
    """Have llama.cpp read the headers and create the tensors; return its model handle.

    `dry` allocates nothing. `experts_used` is (metadata key, number of active experts). Raises
    ModelFormatError with llama.cpp's reason.
    """
    params = L.llama_model_default_params()
    # The file's own layout: repacked copies of the weights could not be streamed.
    params.n_gpu_layers, params.use_extra_bufts = 0, False
    params.no_alloc, params.lazy_mode = dry, _LAZY_MODE_OFF
    params.load_mode = _LOAD_MODE_NONE if dry else _LOAD_MODE_MMAP
    if overrides is not None:
        where = C.addressof(params) + type(params).tensor_buft_overrides.offset
        C.c_void_p.from_address(where).value = C.addressof(overrides)
    model = load_files(params, paths, experts_used)
    if not model:
        raise ModelFormatError(f"llama.cpp cannot load this model: {log.last_error()}")
    return model


def load_files(
    params: Any, paths: Sequence[str], experts_used: tuple[str, int] | None = None
) -> int:
    """Have llama.cpp load a model from all of its shards; return 0 where it refuses.

    `experts_used` is (metadata key, number of active experts).
    """
    if experts_used:
        # An empty key ends the list.
        values = (L.llama_model_kv_override * 2)()
        values[0].key, values[0].tag = experts_used[0].encode(), _OVERRIDE_INT
        values[0].value.val_i64 = experts_used[1]
        params.kv_overrides = values
    log.clear()
    if len(paths) == 1:
        return int(L.llama_model_load_from_file(paths[0].encode(), params) or 0)
    names = (C.c_char_p * len(paths))(*(path.encode() for path in paths))
    return int(L.llama_model_load_from_splits(names, len(paths), params) or 0)


def open_context(
    model: int,
    *,
    context_tokens: int,
    chunk_tokens: int,
    threads: int,
    kv_type: KvType,
    eval_callback: EvalCallback | None = None,
) -> int:
    """Create a context for one sequence of tokens. Raises EngineError with llama.cpp's reason.

    Keys and values get the same type: latent attention has no values of its own. Recurrent states
    are always float32. Flash attention, which quantized values need, is left to llama.cpp: on a CPU
    it is always on, but for one architecture (grok) that cannot have it.
    """
    params = L.llama_context_default_params()
    params.n_ctx, params.n_seq_max = context_tokens, 1
    params.n_batch = params.n_ubatch = chunk_tokens
    params.n_outputs_max = output_limit(vocabulary_size(model), chunk_tokens)
    params.n_threads = params.n_threads_batch = threads
    params.type_k = params.type_v = _GGML_TYPES[kv_type]
    params.swa_full = WHOLE_WINDOWS
    params.no_perf = True
    if eval_callback is not None:
        params.cb_eval, params.cb_eval_user_data = eval_callback
    log.clear()
    context = L.llama_init_from_model(model, params)
    if not context:
        raise EngineError(f"llama.cpp cannot create a context: {log.last_error()}")
    return int(context)


def vocabulary_size(model: int) -> int:
    """Return the number of tokens that the model knows."""
    return int(L.llama_vocab_n_tokens(L.llama_model_get_vocab(model)))
