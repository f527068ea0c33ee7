"""What the engines for safetensors checkpoints have in common: one model, one context."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np

from localmoe.backends.base import FloatArray, Logits, Stats
from localmoe.backends.interrupts import whole_or_undone
from localmoe.backends.token_check import check_tokens
from localmoe.backends.torch.tokenizer import TorchTokenizer
from localmoe.cache.expert_cache import ExpertCache
from localmoe.cache.stats import ExpertWatch
from localmoe.closing import Closing
from localmoe.errors import EngineError, LocalMoeError
from localmoe.planning.plan import MemoryPlan
from localmoe.weights.catalog import Catalog, ExpertKey

_OUTPUT_NBYTES = 256 << 20
"""All logits of a step are computed at once: steps are cut so that they take no more."""


class Server(Protocol):
    """Serves a model's modules with experts."""

    interrupted: bool
    """Set by anybody: the next layer raises InterruptedDecodeError."""


class Served(Protocol):
    """A model whose experts are served, and all that belongs to it."""

    stamp: str
    """Tells whether a saved context is one of this model."""

    @property
    def server(self) -> Server:
        """Who serves its modules."""
        ...

    @property
    def catalog(self) -> Catalog:
        """Where its bytes lie."""
        ...

    @property
    def cache(self) -> ExpertCache:
        """The expert cache."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


class Context(Protocol):
    """What a model keeps of the tokens that it has seen."""

    @property
    def position(self) -> int:
        """How many tokens that are."""
        ...

    @property
    def can_rewind(self) -> bool:
        """Whether any end can be cut off."""
        ...

    def mark(self) -> None:
        """Remember this position."""
        ...

    def truncate(self, n: int) -> int:
        """Keep the first n tokens, or fewer where that cannot be; return how many are left."""
        ...

    def rollback(self, n: int) -> int:
        """Undo what came after n tokens, half of a step included; see `truncate`."""
        ...

    def free(self) -> None:
        """Let all memory go."""
        ...


S = TypeVar("S", bound=Served)
C = TypeVar("C", bound=Context)


class CheckpointEngine(Closing, ABC, Generic[S, C]):
    """Implements most of `backends.base.Engine`; what is left knows the library that computes."""

    library = ""
    """Its name."""
    failures: tuple[type[Exception], ...] = (RuntimeError,)
    """What that library raises when it cannot go on."""

    def __init__(
        self,
        served: S,
        context: C,
        tokenizer: TorchTokenizer,
        plan: MemoryPlan,
        generation_defaults: dict[str, float],
    ) -> None:
        self._served: S | None = served
        self._kv = context
        self._tokenizer, self._plan = tokenizer, plan
        self._defaults = generation_defaults
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
        """The checkpoint's model type, as its config.json or transformers names it."""
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

    @abstractmethod
    def stats(self) -> Stats:
        """Return a snapshot of the counters."""

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write the context's state; see `Engine.save`. Raises EngineError."""

    @abstractmethod
    def restore(self, path: Path) -> None:
        """Read back a state; see `Engine.restore`. Raises EngineError."""

    def close(self) -> None:
        """Free everything. May be called twice."""
        if self._served is None:
            return
        served, self._served = self._served, None
        self._kv.free()
        served.close()

    def _open(self) -> S:
        if self._served is None:
            raise EngineError("the engine is closed: load the model again")
        return self._served

    def _chunk_tokens(self, logits: Logits) -> int:
        """Return how many tokens a step may have at most."""
        length = self._plan.prefill_chunk_tokens
        if logits == "all":
            length = min(length, max(1, _OUTPUT_NBYTES // (4 * self._tokenizer.n_vocab)))
        return length

    @abstractmethod
    def _chunks(self, tokens: list[int], logits: Logits) -> Iterator[tuple[list[int], int]]:
        """Cut tokens into steps, each with how many of its last tokens' logits are wanted."""

    @abstractmethod
    def _compute(self, served: S, chunk: Sequence[int], wanted: int) -> FloatArray:
        """Append tokens to the context; return the last `wanted` logits, float32 [wanted, V]."""

    def _step(self, served: S, chunk: list[int], wanted: int) -> FloatArray:
        try:
            return self._compute(served, chunk, wanted)
        except (LocalMoeError, MemoryError):
            raise
        except self.failures as error:
            raise EngineError(f"{self.library} could not compute this step: {error}") from error
