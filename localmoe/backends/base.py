"""The Engine protocol: all that chat, server, sampling and benchmarks know of an engine."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from localmoe.cache.slots import SlotPool
from localmoe.cache.stats import ExpertWatch
from localmoe.planning.plan import MemoryPlan
from localmoe.weights.catalog import Catalog, ExpertKey

Logits = Literal["last", "all", "none"]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Stats:
    """Counters that only grow; subtract two snapshots to judge what lies between them."""

    tokens: int = 0
    """Tokens decoded, prefill included."""
    hits: int = 0
    """Expert requests found in a slot (one per layer, distinct expert and decode step)."""
    misses: int = 0
    """Expert requests that had to be read."""
    read_bytes: int = 0
    """Bytes of experts read from the device on demand."""
    stall_seconds: float = 0.0
    """Time in which the engine waited for expert bytes; part of `decode_seconds`."""
    decode_seconds: float = 0.0
    """Wall time inside `decode`."""
    split_layers: int = 0
    """Times that one step asked a layer for more experts than fit: it was computed in passes."""
    copied_bytes: int = 0
    """Bytes of experts copied from host memory to a device that computes."""
    split_seconds: float = 0.0
    """Time spent on moving rows for those passes: what the splitting itself costs."""

    def __sub__(self, other: Stats) -> Stats:
        return Stats(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    @property
    def hit_rate(self) -> float:
        """Hits over requests; 1.0 when nothing was requested."""
        requests = self.hits + self.misses
        return self.hits / requests if requests else 1.0


class Tokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def n_vocab(self) -> int:
        """Number of tokens."""
        ...

    @property
    def bos(self) -> int | None:
        """The token that starts a text, if the model has one."""
        ...

    @property
    def eos(self) -> int | None:
        """The token that ends a text, if the model has one."""
        ...

    @property
    def add_bos(self) -> bool:
        """Whether plain text (not a rendered chat) should start with `bos`."""
        ...

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return token ids, no bos added. `special`: markup (<|im_end|>) becomes one token."""
        ...

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        """Return a token's bytes, which may be part of a UTF-8 character.

        Control tokens give b"" unless `special`.
        """
        ...

    def is_end(self, token: int) -> bool:
        """Whether generation ends with this token (eos, end of turn, ...)."""
        ...


@runtime_checkable
class Engine(Protocol):
    """One model, one stream of tokens. Not thread safe. A context manager that closes itself."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        ...

    @property
    def plan(self) -> MemoryPlan:
        """How the memory budget was split."""
        ...

    @property
    def load_seconds(self) -> float:
        """Wall time from the call of `load` until the engine was ready."""
        ...

    @property
    def architecture(self) -> str:
        """The checkpoint's architecture, as llama.cpp names it: qwen3moe, afmoe, ..."""
        ...

    @property
    def chat_template(self) -> str | None:
        """The checkpoint's own Jinja template."""
        ...

    @property
    def generation_defaults(self) -> dict[str, float]:
        """Sampling values the checkpoint asks for: temperature, top_k, top_p, min_p."""
        ...

    @property
    def position(self) -> int:
        """Number of tokens in the context."""
        ...

    @property
    def can_rewind(self) -> bool:
        """Whether `truncate` can go back to any position.

        False for models with recurrent layers, which keep a state instead of what they have read:
        they go back to a `mark`, or to 0. Layers with a window are no obstacle where an engine
        keeps all that they have read.
        """
        ...

    def decode(self, tokens: list[int], logits: Logits = "last") -> FloatArray:
        """Append at least one token; return logits, float32 [n, V]: n is 1, len(tokens) or 0.

        The array belongs to the caller, and "all" logits of many tokens are large: 4 n V bytes, of
        which the plan knows nothing. On any error, Ctrl-C included, the position is what it was
        before, or less if the architecture cannot rewind, and the engine stays usable. Raises
        ContextFullError, ExpertReadError, InterruptedDecodeError, UnsupportedModelError,
        EngineError.
        """
        ...

    def interrupt(self) -> None:
        """Ask a decode under way to end soon with InterruptedDecodeError.

        Safe to call from a signal handler. Nothing happens when no decode is under way, or when it
        ends of itself first.
        """
        ...

    def mark(self) -> None:
        """Remember the present position for `truncate`, where `can_rewind` is False.

        The last two marks are kept, in memory that the plan has set aside.
        """
        ...

    def truncate(self, n: int) -> int:
        """Keep the first n tokens; return the new position, smaller if it cannot rewind to n.

        It is smaller, and the tokens after it have to be decoded again, only where `can_rewind` is
        False.
        """
        ...

    def save(self, path: Path) -> None:
        """Write the state of the context, atomically. Raises EngineError."""
        ...

    def restore(self, path: Path) -> None:
        """Read back what `save` wrote for the same model and type of KV cache; marks are forgotten.

        Raises EngineError: for a file that is not usable, and then the context is what it was; or
        because the engine refuses it nonetheless, and then the context is empty.
        """
        ...

    def stats(self) -> Stats:
        """Return a snapshot of the counters."""
        ...

    def close(self) -> None:
        """Free everything. May be called twice; what needs the model then raises EngineError."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


@runtime_checkable
class WatchedEngine(Protocol):
    """An engine whose experts can be watched while it computes."""

    @property
    def catalog(self) -> Catalog:
        """Where the model's bytes lie."""
        ...

    def watch_experts(self, watch: ExpertWatch | None) -> Collection[ExpertKey] | None:
        """Have every request for experts told from now on; None: no more.

        Returns a view of the experts that are in memory, which changes as the engine computes; None
        where all of them are, and then nothing is told. The watch and the view are for the thread
        that decodes.
        """
        ...


class MeasuredEngine(Engine, WatchedEngine, Protocol):
    """An engine of this project: what benchmarks look at besides."""

    @property
    def slot_pool(self) -> SlotPool | None:
        """The slots under the cache; None when every expert is resident."""
        ...

    def compiled_counts(self) -> object | None:
        """Return what compiled code did so far; None where there is none."""
        ...
