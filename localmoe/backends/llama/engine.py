"""The llama.cpp engine: one model, one context, experts from memory or streamed."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from localmoe.backends.base import FloatArray, Logits, Stats
from localmoe.backends.interrupts import whole_or_undone
from localmoe.backends.llama import log, state
from localmoe.backends.llama.bindings import L
from localmoe.backends.llama.compiled import Counts, Exchange
from localmoe.backends.llama.hook import RoutingWatch
from localmoe.backends.llama.loader import LoadedModel
from localmoe.backends.llama.marks import Marks
from localmoe.backends.llama.parameters import SAMPLING_KEYS, output_limit
from localmoe.backends.llama.sharing import CoreSharing
from localmoe.backends.llama.source import ModelSource
from localmoe.backends.llama.streaming import Streaming
from localmoe.backends.llama.tokenizer import LlamaTokenizer
from localmoe.backends.token_check import check_tokens
from localmoe.cache.expert_cache import ExpertCache
from localmoe.cache.slots import SlotPool
from localmoe.cache.stats import CacheStats, ExpertWatch
from localmoe.closing import Closing
from localmoe.errors import EngineError, InterruptedDecodeError
from localmoe.planning.plan import MemoryPlan
from localmoe.weights.catalog import Catalog, ExpertKey

_WATCHED_TOKENS = 64
_ABORTED = 2  # what llama_decode returns then
_NO_ABORT = L.ggml_abort_callback()


class LlamaEngine(Closing):
    """Implements `backends.base.Engine`. Made by `backends.llama.load`."""

    def __init__(
        self,
        source: ModelSource,
        plan: MemoryPlan,
        model: LoadedModel,
        context: int,
        streaming: Streaming | None,
        sharing: CoreSharing | None,
    ) -> None:
        """`sharing` is there where the callback can compute on fewer threads."""
        self._source, self._catalog, self._plan = source, source.catalog, plan
        self._model, self._context, self._streaming = model, context, streaming
        self._sharing = sharing
        self._share_cores()
        self._memory = L.llama_get_memory(context)
        self._tokenizer = LlamaTokenizer(model.handle)
        self._batch = L.llama_batch_init(plan.prefill_chunk_tokens, 0, 1)
        self._outputs = output_limit(self._tokenizer.n_vocab, plan.prefill_chunk_tokens)
        self._marks = Marks(context, plan.mark_bytes)
        self._can_rewind = not (
            L.llama_model_is_recurrent(model.handle) or L.llama_model_is_hybrid(model.handle)
        )
        self._tokens: list[int] = []
        self._interrupted = False
        self._abort = L.ggml_abort_callback(lambda _: self._interrupted)
        self._decoded, self._seconds, self._load_seconds = 0, 0.0, 0.0

    @property
    def catalog(self) -> Catalog:
        """Where the model's bytes lie."""
        return self._catalog

    @property
    def tokenizer(self) -> LlamaTokenizer:
        """The model's tokenizer."""
        return self._tokenizer

    @property
    def plan(self) -> MemoryPlan:
        """How the memory budget was split."""
        return self._plan

    @property
    def load_seconds(self) -> float:
        """Wall time from the call of `load` until the engine was ready."""
        return self._load_seconds

    @load_seconds.setter
    def load_seconds(self, seconds: float) -> None:
        self._load_seconds = seconds

    @property
    def architecture(self) -> str:
        """The checkpoint's architecture."""
        return self._catalog.architecture

    @property
    def chat_template(self) -> str | None:
        """The checkpoint's own Jinja template."""
        template = self._catalog.metadata.get("tokenizer.chat_template")
        return template if isinstance(template, str) else None

    @property
    def generation_defaults(self) -> dict[str, float]:
        """Sampling values that the checkpoint asks for."""
        found = {ours: self._catalog.metadata.get(key) for key, ours in SAMPLING_KEYS.items()}
        return {ours: float(v) for ours, v in found.items() if isinstance(v, (int, float))}

    @property
    def cache(self) -> ExpertCache | None:
        """The expert cache; None when every expert is resident."""
        return self._streaming.cache if self._streaming else None

    @property
    def slot_pool(self) -> SlotPool | None:
        """The slots under the cache; None when every expert is resident."""
        return self._streaming.pool if self._streaming else None

    @property
    def position(self) -> int:
        """Number of tokens in the context."""
        return len(self._tokens)

    @property
    def can_rewind(self) -> bool:
        """Whether there are no recurrent layers; see `Engine.can_rewind`."""
        return self._can_rewind

    def decode(self, tokens: list[int], logits: Logits = "last") -> FloatArray:
        """Append tokens and return logits, float32 [n, V]; see `Engine.decode`."""
        self._check_open()
        check_tokens(self, tokens)
        start, began = self.position, time.perf_counter()
        n_rows = {"last": 1, "all": len(tokens), "none": 0}[logits]
        # One array for all steps: the rows of many tokens are too large to be held twice.
        result, done = np.empty((n_rows, self._tokenizer.n_vocab), np.float32), 0
        self._request_interrupt(False)
        if self._sharing and self._sharing.look():
            self._share_cores()
        if self._streaming:
            self._streaming.prepare(min(len(tokens), self._plan.prefill_chunk_tokens))
        try:
            with whole_or_undone(self.interrupt, lambda: self.truncate(start)):
                for chunk, flags in self._chunks(tokens, logits):
                    if self._interrupted:
                        raise InterruptedDecodeError("the decode was interrupted")
                    done += self._step(chunk, flags, result[done:])
        finally:
            self._seconds += time.perf_counter() - began
        self._decoded += len(tokens)
        return result

    def interrupt(self) -> None:
        """Ask a decode under way to end: at the next MoE layer, or so if all is resident."""
        self._request_interrupt(True)

    def watch_routing(self, watch: RoutingWatch | None) -> None:
        """Have every routing told from now on; None: no more. Raises EngineError.

        The watch is called while llama.cpp computes, and only where experts are streamed.
        """
        if not self._streaming:
            raise EngineError("every expert is in memory: nobody is told of routings then")
        self._streaming.callback.watch(watch)

    def exchange_routing(self, exchange: Exchange | None) -> None:
        """Let a function overwrite what routers choose: for replays. Not where all is resident."""
        if self._streaming:
            self._streaming.callback.exchange(exchange)

    def watch_experts(self, watch: ExpertWatch | None) -> Collection[ExpertKey] | None:
        """Have requests for experts told; see `backends.base.WatchedEngine`."""
        return self._streaming.cache.occupancy.watch(watch) if self._streaming else None

    def compiled_counts(self) -> Counts | None:
        """Return what the compiled callback did so far; None where there is none."""
        return self._streaming.callback.counts() if self._streaming else None

    def mark(self) -> None:
        """Remember this position; see `Engine.mark`. Raises EngineError."""
        self._check_open()
        self._marks.add(self.position)

    def truncate(self, n: int) -> int:
        """Keep the first n tokens; return the new position, smaller if it cannot rewind to n."""
        self._check_open()
        n = max(0, n)
        held = int(L.llama_memory_seq_pos_max(self._memory, 0)) + 1
        if n >= max(held, self.position):
            return self.position
        # A window that has forgotten its first tokens has put others in their places: what is still
        # there would be added up in another order, and that rounds differently.
        whole = int(L.llama_memory_seq_pos_min(self._memory, 0)) == 0
        if not (n > 0 and whole and L.llama_memory_seq_rm(self._memory, 0, n, -1)):
            n = self._marks.rewind(n)
        del self._tokens[n:]
        return self.position

    def save(self, path: Path) -> None:
        """Write the context's state; see `Engine.save`. Raises EngineError."""
        self._check_open()
        stamp = state.model_stamp(self._catalog, self._plan.kv_type)
        windowed = self._can_rewind and L.llama_model_n_swa(self._model.handle) > 0
        name = self._catalog.architecture if windowed else None
        state.write(self._context, path, [*stamp, *self._tokens], name)

    def restore(self, path: Path) -> None:
        """Read back a state; see `Engine.restore`. Raises EngineError."""
        self._check_open()
        stamp = state.model_stamp(self._catalog, self._plan.kv_type)
        state.check(path, stamp, self._plan.context_tokens)
        self.truncate(0)
        words = state.read(self._context, path, len(stamp) + self._plan.context_tokens)
        self._tokens = words[len(stamp) :]

    def stats(self) -> Stats:
        """Return a snapshot of the counters."""
        stream = self._streaming
        cache = stream.cache.stats() if stream else CacheStats()
        return Stats(
            tokens=self._decoded,
            hits=cache.hits,
            misses=cache.misses,
            read_bytes=cache.read_bytes,
            stall_seconds=stream.callback.stall_seconds if stream else 0.0,
            decode_seconds=self._seconds,
            split_layers=stream.callback.split_layers if stream else 0,
            split_seconds=stream.callback.split_seconds if stream else 0.0,
        )

    def close(self) -> None:
        """Free everything. May be called twice."""
        if not self._context:
            return
        self._tokenizer.close()
        L.llama_batch_free(self._batch)
        L.llama_free(self._context)
        self._context = 0
        self._model.close()
        if self._streaming:
            self._streaming.close()
        self._source.close()

    def _share_cores(self) -> None:
        if (sharing := self._sharing) and self._streaming:
            L.llama_set_n_threads(self._context, sharing.n_threads, sharing.most)
            fewer = sharing.n_threads if sharing.n_threads < sharing.most else None
            self._streaming.callback.share_cores(fewer, alone=sharing.alone)

    def _request_interrupt(self, wanted: bool) -> None:
        self._interrupted = wanted
        if self._streaming:
            self._streaming.callback.interrupt(wanted)

    def _check_open(self) -> None:
        if not self._context:
            raise EngineError("the engine is closed: load the model again")

    def _chunks(self, tokens: list[int], logits: Logits) -> Iterator[tuple[list[int], list[bool]]]:
        """Cut tokens into steps, with a flag per token that says whether its logits are wanted."""
        length = self._plan.prefill_chunk_tokens
        if logits == "all":
            length = min(length, self._outputs)
        for start in range(0, len(tokens), length):
            chunk = tokens[start : start + length]
            flags = [logits == "all"] * len(chunk)
            if logits == "last" and start + length >= len(tokens):
                flags[-1] = True
            yield chunk, flags

    def _step(self, tokens: list[int], flags: list[bool], out: FloatArray) -> int:
        """Compute one batch; write the logits asked for to the start of `out`, return how many."""
        batch, position = self._batch, self.position
        batch.n_tokens = len(tokens)
        for i, (token, flag) in enumerate(zip(tokens, flags, strict=True)):
            batch.token[i], batch.pos[i] = token, position + i
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, flag
        log.clear()
        # Asked between any two nodes: that takes too long for single tokens, and the hook is asked
        # anyway where experts are streamed.
        watched = not self._streaming and len(tokens) >= _WATCHED_TOKENS
        if watched:
            L.llama_set_abort_callback(self._context, self._abort, None)
        try:
            status = L.llama_decode(self._context, batch)
        finally:
            if watched:
                L.llama_set_abort_callback(self._context, _NO_ABORT, None)
            if self._streaming:
                self._streaming.callback.finish()
        if status == _ABORTED:
            raise InterruptedDecodeError("the decode was interrupted")
        if status:
            raise EngineError(f"llama.cpp could not decode ({status}): {log.last_error()}")
        rows = sum(flags)
        if rows:
            if self._streaming:
                self._streaming.callback.check_all_routed()
            pointer = L.llama_get_logits(self._context)
            out[:rows] = np.ctypeslib.as_array(pointer, (rows, self._tokenizer.n_vocab))
        self._tokens.extend(tokens)
        return rows
