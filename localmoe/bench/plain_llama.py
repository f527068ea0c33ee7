"""The peer: llama.cpp by itself, on the same file and the same tokens."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from localmoe.backends.base import FloatArray
from localmoe.backends.llama import log, parameters
from localmoe.backends.llama.bindings import L
from localmoe.backends.llama.source import ModelSource, open_source
from localmoe.bench.forced import force, sha256_of
from localmoe.bench.request import PeerRequest
from localmoe.bench.tokens import token_stream
from localmoe.errors import EngineError
from localmoe.planning.machine import available_memory_bytes

_LOAD_INTO_RAM, _LOAD_MMAP = 0, 1  # llama_model_params.load_mode
_REPACK_ROOM_BYTES = 1 << 30
"""What a repacked model needs beside its weights, KV cache and buffers included."""


def measure_peer(request: PeerRequest) -> dict[str, object]:
    """Load and decode with plain llama.cpp. Returns speed, raw samples and the logits' hash.

    llama.cpp repacks weights for faster kernels by default. These copies need memory for the whole
    model: where that is not there, repacking is switched off, because the process would be killed.
    """
    L.llama_backend_init()
    source = open_source(request.model, request.experts_used)
    source.close()
    repack = request.name == "mmap" and _room_to_repack(source)
    began = time.perf_counter()
    peer = PlainLlama(source, request, repack=repack)
    load_seconds = time.perf_counter() - began
    try:
        tokens = token_stream(request.prompt_tokens + request.tokens, peer.n_vocab)
        began = time.perf_counter()
        peer.decode(tokens[: request.prompt_tokens])
        prefill_seconds = time.perf_counter() - began
        forced = force(peer.decode, tokens[request.prompt_tokens :])
    finally:
        peer.close()
    return {
        "tokens_per_second": forced.tokens_per_second,
        "tokens": request.tokens,
        "repacked": repack,
        "load_seconds": load_seconds,
        "prefill_tokens_per_second": request.prompt_tokens / prefill_seconds,
        "token_seconds": list(forced.token_seconds),
        "logits_sha256": forced.logits_sha256[request.tokens],
    }


def measure_peer_prefill(
    request: PeerRequest, on_chunk: Callable[[int, float], None]
) -> dict[str, object]:
    """Read `request.prompt_tokens` tokens with plain llama.cpp, chunk by chunk.

    `on_chunk` is told, when the model is loaded and after each chunk, how many tokens are done and
    in how many seconds: a run that is ended early has told that much. Returns seconds, speed and
    the logits' hash.
    """
    L.llama_backend_init()
    source = open_source(request.model, request.experts_used)
    source.close()
    peer = PlainLlama(source, request, repack=False)
    try:
        tokens = token_stream(request.prompt_tokens, peer.n_vocab)
        on_chunk(0, 0.0)
        began = time.perf_counter()
        for start in range(0, len(tokens), request.chunk_tokens):
            chunk = tokens[start : start + request.chunk_tokens]
            logits = peer.decode(chunk)
            on_chunk(start + len(chunk), time.perf_counter() - began)
        seconds = time.perf_counter() - began
    finally:
        peer.close()
    return {
        "seconds": seconds,
        "tokens": len(tokens),
        "tokens_per_second": len(tokens) / seconds,
        "chunk_tokens": request.chunk_tokens,
        "logits_sha256": sha256_of(logits),
    }


def _room_to_repack(source: ModelSource) -> bool:
    weights = source.catalog.resident_nbytes + source.catalog.expert_nbytes
    return weights + _REPACK_ROOM_BYTES <= available_memory_bytes()


class PlainLlama:
    """A model and its context, with llama.cpp's own memory and no callback."""

    def __init__(self, source: ModelSource, request: PeerRequest, *, repack: bool) -> None:
        self._chunk = request.chunk_tokens
        self._model = _open_model(source, request, repack)
        try:
            self._context = parameters.open_context(
                self._model,
                context_tokens=request.context_tokens,
                chunk_tokens=request.chunk_tokens,
                threads=request.threads,
                kv_type=request.kv_type,
            )
        except BaseException:
            L.llama_model_free(self._model)
            raise
        self.n_vocab = parameters.vocabulary_size(self._model)

    def decode(self, tokens: list[int]) -> FloatArray:
        """Append tokens; return the logits of the last, float32 [1, V]. Raises EngineError."""
        for start in range(0, len(tokens), self._chunk):
            chunk = tokens[start : start + self._chunk]
            array = (L.llama_token * len(chunk))(*chunk)
            status = L.llama_decode(self._context, L.llama_batch_get_one(array, len(chunk)))
            if status:
                raise EngineError(f"llama.cpp could not decode ({status}): {log.last_error()}")
        pointer = L.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(pointer, (1, self.n_vocab)).copy()

    def close(self) -> None:
        """Free context and model."""
        L.llama_free(self._context)
        L.llama_model_free(self._model)


def _open_model(source: ModelSource, request: PeerRequest, repack: bool) -> int:
    params = L.llama_model_default_params()
    params.n_gpu_layers, params.use_extra_bufts = 0, repack
    params.load_mode = _LOAD_MMAP if request.name == "mmap" else _LOAD_INTO_RAM
    model = parameters.load_files(params, source.catalog.paths, source.override)
    if not model:
        raise EngineError(f"llama.cpp cannot load this model: {log.last_error()}")
    return model
