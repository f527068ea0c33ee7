"""The MLX engine: one model, one context, experts streamed into slots."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from localmoe.backends.base import FloatArray, Logits, Stats
from localmoe.backends.interrupts import whole_or_undone
from localmoe.backends.mlx import state
from localmoe.backends.mlx.kv_cache import PromptCache
from localmoe.backends.mlx.pipeline import Pipeline
from localmoe.backends.mlx.pipelined import PipelinedModel
from localmoe.backends.mlx.served_model import ServedModel
from localmoe.backends.token_check import check_tokens
from localmoe.backends.torch.tokenizer import TorchTokenizer
from localmoe.cache.expert_cache import ExpertCache
from localmoe.cache.slots import SlotPool
from localmoe.cache.stats import ExpertWatch
from localmoe.closing import Closing
from localmoe.errors import EngineError, LocalMoeError
from localmoe.planning.plan import MemoryPlan
from localmoe.weights.catalog import Catalog, ExpertKey

State = tuple[list[Any], list[int]]
"""Caches, and the tokens that they have seen."""
_OUTPUT_NBYTES = 256 << 20
"""All logits of a step are computed at once: steps are cut so that they take no more."""


class MlxEngine(Closing):
    """Implements `backends.base.Engine`. Made by `backends.mlx.load`."""

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
        self._kv = PromptCache(served.model, plan.context_tokens)
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
        """The checkpoint's model type, as its config.json names it."""
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
        return self._open().pool

    def compiled_counts(self) -> None:
        """No compiled code serves this engine."""

    @property
    def position(self) -> int:
        """Number of tokens in the context."""
        return self._kv.position

    @property
    def can_rewind(self) -> bool:
        """Whether no layer forgets what fits into the context; see `Engine.can_rewind`."""
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
                    result[done : done + wanted] = self._step(served, chunk, wanted)
                    done += wanted
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
        self.take_state(self.read_state(path))

    def read_state(self, path: Path) -> State:
        """Return what `save` wrote, for `take_state`. Raises EngineError."""
        return state.read(self._kv, path, self._open().stamp, self._plan.context_tokens)

    def take_state(self, found: State) -> None:
        """Have a state in place of what the context holds."""
        self._kv.replace(*found)

    def stats(self) -> Stats:
        """Return a snapshot of the counters."""
        served = self._open()
        cache = served.cache.stats()
        return Stats(
            tokens=self._decoded,
            hits=cache.hits,
            misses=cache.misses,
            read_bytes=cache.read_bytes,
            stall_seconds=served.server.stall_seconds,
            decode_seconds=self._seconds,
            split_layers=served.server.split_layers,
        )

    @property
    def stage(self) -> Pipeline:
        """The part of the model that this is, where `Settings.ranks` says that it is one."""
        served = self._open()
        assert isinstance(served, PipelinedModel)
        return served.pipeline

    def join(self, chunk_tokens: int) -> None:
        """Become one of several ranks: connect, and read prompts in steps as long as theirs."""
        self.stage.join()
        self._plan = replace(self._plan, prefill_chunk_tokens=chunk_tokens)

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
        """Cut tokens into steps, each with how many of its last tokens' logits are wanted.

        As mlx-lm does it: where only the last logits are wanted, its token is a step of its own,
        so that the output matrix is multiplied once.
        """
        length = self._plan.prefill_chunk_tokens
        if logits == "all":
            length = min(length, max(1, _OUTPUT_NBYTES // (4 * self._tokenizer.n_vocab)))
        ahead = len(tokens) - 1 if logits == "last" else len(tokens)
        for start in range(0, ahead, length):
            chunk = tokens[start : min(start + length, ahead)]
            yield chunk, len(chunk) if logits == "all" else 0
        if logits == "last":
            yield tokens[ahead:], 1

    def _step(self, served: ServedModel, chunk: list[int], wanted: int) -> FloatArray:
        try:
            return served.step(chunk, self._kv, wanted)
        except (LocalMoeError, MemoryError):
            raise
        except (RuntimeError, ValueError) as error:
            raise EngineError(f"MLX could not compute this step: {error}") from error
