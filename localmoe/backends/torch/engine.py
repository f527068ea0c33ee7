"""The torch engine: one model, one context, experts streamed into slots."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from localmoe.backends.base import FloatArray, Logits, Stats
from localmoe.backends.interrupts import whole_or_undone
from localmoe.backends.token_check import check_tokens
from localmoe.backends.torch import state
from localmoe.backends.torch.kv_cache import KvCache
from localmoe.backends.torch.served_model import ServedModel
from localmoe.backends.torch.tokenizer import TorchTokenizer
from localmoe.cache.expert_cache import ExpertCache
from localmoe.cache.slots import SlotPool
from localmoe.cache.stats import ExpertWatch
from localmoe.closing import Closing
from localmoe.errors import EngineError, InterruptedDecodeError, LocalMoeError
from localmoe.planning.plan import MemoryPlan
from localmoe.weights.catalog import Catalog, ExpertKey

_OUTPUT_NBYTES = 256 << 20
"""All logits of a step are computed at once: steps are cut so that they take no more."""

STARTS_OVER = frozenset({"jamba"})
"""transformers forgets what came before where these are given several tokens at once."""


class TorchEngine(Closing):
    """Implements `backends.base.Engine`. Made by `backends.torch.load`."""

    def __init__(
        self,
        served: ServedModel,
        tokenizer: TorchTokenizer,
        plan: MemoryPlan,
        generation_defaults: dict[str, float],
    ) -> None:
        self._served: ServedModel | None = served
        self._tokenizer, self._plan = tokenizer, plan
        self._defaults = generation_defaults
        self._kv = KvCache(served.model.config)
        self._decoded, self._seconds = 0, 0.0
        self.load_seconds = 0.0
        """See `Engine.load_seconds`."""

    @property
    def catalog(self) -> Catalog:
        """Where the model's bytes lie."""
        return self._open().catalog

    @property
    def tokenizer(self) -> TorchTokenizer:
        """The model's tokenizer."""
        return self._tokenizer

    @property
    def plan(self) -> MemoryPlan:
        """How the memory budget was split."""
        return self._plan

    @property
    def architecture(self) -> str:
        """The checkpoint's model type, as transformers names it."""
        return self._open().catalog.architecture

    @property
    def chat_template(self) -> str | None:
        """The checkpoint's own Jinja template."""
        return self._tokenizer.chat_template

    @property
    def generation_defaults(self) -> dict[str, float]:
        """Sampling values that the checkpoint asks for."""
        return dict(self._defaults)

    @property
    def cache(self) -> ExpertCache:
        """The expert cache."""
        return self._open().cache

    @property
    def slot_pool(self) -> SlotPool:
        """The slots under the cache."""
        return self._open().levels.pool

    def compiled_counts(self) -> None:
        """No compiled code serves this engine."""

    @property
    def position(self) -> int:
        """Number of tokens in the context."""
        return self._kv.position

    @property
    def can_rewind(self) -> bool:
        """Whether no layer forgets what it has read; see `Engine.can_rewind`."""
        return self._kv.can_rewind

    def decode(self, tokens: list[int], logits: Logits = "last") -> FloatArray:
        """Append tokens and return logits, float32 [n, V]; see `Engine.decode`."""
        served = self._open()
        check_tokens(self, tokens)
        start, began = self.position, time.perf_counter()
        n_rows = {"last": 1, "all": len(tokens), "none": 0}[logits]
        result, done = np.empty((n_rows, self._tokenizer.n_vocab), np.float32), 0
        served.server.interrupted = False
        try:
            with whole_or_undone(self.interrupt, lambda: self._kv.rollback(start)):
                for chunk, wanted in self._chunks(tokens, logits):
                    if served.server.interrupted:
                        raise InterruptedDecodeError("the decode was interrupted")
                    done += self._step(served, chunk, wanted, result[done:])
        finally:
            self._seconds += time.perf_counter() - began
        self._decoded += len(tokens)
        return result

    def interrupt(self) -> None:
        """Ask a decode under way to end: at the next MoE layer."""
        if self._served:
            self._served.server.interrupted = True

    def watch_experts(self, watch: ExpertWatch | None) -> Collection[ExpertKey] | None:
        """Have requests for experts told; see `backends.base.WatchedEngine`."""
        return self._open().cache.occupancy.watch(watch)

    def mark(self) -> None:
        """Remember this position; see `Engine.mark`. Raises EngineError."""
        self._open()
        self._kv.mark()

    def truncate(self, n: int) -> int:
        """Keep the first n tokens; return the new position, smaller if it cannot rewind to n."""
        self._open()
        return self._kv.truncate(max(0, n))

    def save(self, path: Path) -> None:
        """Write the context's state; see `Engine.save`. Raises EngineError."""
        state.write(self._kv, path, self._open().stamp)

    def restore(self, path: Path) -> None:
        """Read back a state; see `Engine.restore`. Raises EngineError."""
        served = self._open()
        room = self._plan.context_tokens
        cache, tokens = state.read(path, served.model, served.stamp, room)
        self._kv.replace(cache, tokens)

    def stats(self) -> Stats:
        """Return a snapshot of the counters."""
        served = self._open()
        cache = served.cache.stats()
        return Stats(
            tokens=self._decoded,
            hits=cache.hits,
            misses=cache.misses,
            read_bytes=served.levels.below.stats().read_bytes,
            stall_seconds=served.server.stall_seconds,
            decode_seconds=self._seconds,
            split_layers=served.server.split_layers,
            copied_bytes=cache.read_bytes if served.levels.has_device else 0,
        )

    def close(self) -> None:
        """Free everything. May be called twice."""
        if self._served is None:
            return
        served, self._served = self._served, None
        self._kv.free()
        served.close()

    def _open(self) -> ServedModel:
        if self._served is None:
            raise EngineError("the engine is closed: load the model again")
        return self._served

    def _chunks(self, tokens: list[int], logits: Logits) -> Iterator[tuple[list[int], int]]:
        """Cut tokens into steps, each with how many of its last tokens' logits are wanted."""
        length = self._plan.prefill_chunk_tokens
        starts_over = self.architecture in STARTS_OVER
        if logits == "all":
            length = min(length, max(1, _OUTPUT_NBYTES // (4 * self._tokenizer.n_vocab)))
        start = 0
        while start < len(tokens):
            # Steps are taken one after the other: the position is that of what was read before.
            chunk = tokens[start : start + (1 if starts_over and self.position else length)]
            start += len(chunk)
            is_last = start == len(tokens)
            yield chunk, len(chunk) if logits == "all" else int(logits == "last" and is_last)

    def _step(self, served: ServedModel, chunk: list[int], wanted: int, out: FloatArray) -> int:
        """Compute one step; write the logits asked for to the start of `out`, return how many."""
        try:
            found = served.step(chunk, self._kv.cache, wanted)
        except (LocalMoeError, MemoryError):
            raise
        except RuntimeError as error:
            raise EngineError(f"torch could not compute this step: {error}") from error
        if wanted:
            out[:wanted] = found.numpy()
        self._kv.tokens.extend(chunk)
        return wanted
