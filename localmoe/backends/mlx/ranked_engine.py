"""Rank 0's engine: to its callers one model, whose other layers are in other processes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from localmoe.backends.base import FloatArray, Logits, Stats
from localmoe.backends.interrupts import DeferredInterrupt, whole_or_undone
from localmoe.backends.mlx.rank import Rank, settings_to_json
from localmoe.backends.ranks.meeting import wait_for_others
from localmoe.backends.ranks.others import Answers, OtherRanks
from localmoe.backends.ranks.wire import Head
from localmoe.backends.token_check import check_tokens
from localmoe.backends.torch.tokenizer import TorchTokenizer
from localmoe.cache.slots import SlotPool
from localmoe.cache.stats import ExpertWatch
from localmoe.closing import Closing
from localmoe.errors import EngineError, LostRankError
from localmoe.planning.plan import MemoryPlan
from localmoe.replacing import replaced_file
from localmoe.settings import Progress, Settings
from localmoe.weights.catalog import Catalog, ExpertKey

_MOST_HEAD_NBYTES = 4096


def open_ranked(path: Path, settings: Settings, progress: Progress | None = None) -> RankedEngine:
    """Load a model over the ranks of `settings.ranks`, of which this is the first.

    Raises what `backends.mlx.load` raises on any of them; LostRankError.
    """
    began = time.perf_counter()
    assert settings.ranks is not None
    ranks = settings.ranks
    engine = RankedEngine(OtherRanks(ranks, wait_for_others(ranks)))
    try:
        engine.load(path.absolute(), settings, progress)
    except BaseException:
        engine.close()
        raise
    engine.load_seconds = time.perf_counter() - began
    return engine


class RankedEngine(Closing):
    """Implements `backends.base.Engine`; catalog, plan and slots are those of this rank."""

    def __init__(self, others: OtherRanks) -> None:
        self._others, self._rank = others, Rank()
        self._stats: dict[int, Stats] = {}
        self._seconds, self._interrupted = 0.0, False
        self._can_rewind, self._closed = True, False
        self._layers: tuple[range, ...] = ()
        self.load_seconds = 0.0
        """See `Engine.load_seconds`."""

    def load(self, path: Path, settings: Settings, progress: Progress | None) -> None:
        """Have every rank load its layers, then connect all. Raises what one of them raises."""
        head = {"do": "load", "path": str(path), "settings": settings_to_json(settings)}
        found = self._together(head, lambda: self._rank.load(path, settings, progress))
        said = [message.head for message in found.others.values()]
        chunk_tokens = min([found.own, *(head["chunk_tokens"] for head in said)])
        self._can_rewind = all(head["can_rewind"] for head in said)
        own = self._rank.layers
        self._layers = (own, *(range(*head["layers"]) for head in said))
        self._together(
            {"do": "join", "chunk_tokens": chunk_tokens}, lambda: self._rank.join(chunk_tokens)
        )

    @property
    def catalog(self) -> Catalog:
        """Where the bytes of this rank's layers lie."""
        return self._rank.engine.catalog

    @property
    def tokenizer(self) -> TorchTokenizer:
        """The model's tokenizer."""
        return self._rank.engine.tokenizer

    @property
    def plan(self) -> MemoryPlan:
        """How this rank's memory budget was split."""
        return self._rank.engine.plan

    @property
    def architecture(self) -> str:
        """The checkpoint's model type."""
        return self._rank.engine.architecture

    @property
    def chat_template(self) -> str | None:
        """The checkpoint's own Jinja template."""
        return self._rank.engine.chat_template

    @property
    def generation_defaults(self) -> dict[str, float]:
        """Sampling values that the checkpoint asks for."""
        return self._rank.engine.generation_defaults

    @property
    def slot_pool(self) -> SlotPool:
        """This rank's slots."""
        return self._rank.engine.slot_pool

    def compiled_counts(self) -> None:
        """No compiled code serves this engine."""

    @property
    def position(self) -> int:
        """Number of tokens in the context."""
        return self._rank.engine.position

    @property
    def can_rewind(self) -> bool:
        """Whether no layer of any rank forgets; see `Engine.can_rewind`."""
        return self._can_rewind and self._rank.engine.can_rewind

    def decode(self, tokens: list[int], logits: Logits = "last") -> FloatArray:
        """Append tokens and return logits, float32 [n, V]; see `Engine.decode`."""
        self._check_open()
        check_tokens(self, tokens)
        given = [int(token) for token in tokens]
        start, began, self._interrupted = self.position, time.perf_counter(), False
        head = {"do": "decode", "tokens": given, "logits": logits}
        try:
            with whole_or_undone(self.interrupt, lambda: self._level(start)):
                found = self._together(
                    head, lambda: self._rank.decode(given, logits), self._told_interrupt
                )
        finally:
            self._seconds += time.perf_counter() - began
        result: FloatArray = found.own
        return result

    def interrupt(self) -> None:
        """Ask a decode under way to end: at the next MoE layer of every rank."""
        self._interrupted = True

    def watch_experts(self, watch: ExpertWatch | None) -> Collection[ExpertKey] | None:
        """Have requests for experts of this rank told; see `backends.base.WatchedEngine`."""
        return self._rank.engine.watch_experts(watch)

    def mark(self) -> None:
        """Remember this position; see `Engine.mark`. Raises EngineError."""
        self._whole({"do": "mark"}, self._rank.mark)

    def truncate(self, n: int) -> int:
        """Keep the first n tokens; return the new position, smaller if it cannot rewind to n."""
        self._check_open()
        return self.position if n >= self.position else self._level(max(0, n))

    def save(self, path: Path) -> None:
        """Write the states of all ranks to one file; see `Engine.save`. Raises EngineError."""
        found = self._whole({"do": "save"}, self._rank.saved)
        states = [found.own, *(found.others[rank].blob for rank in sorted(found.others))]
        head = json.dumps({"ranks": [len(state) for state in states]}).encode()
        try:
            with replaced_file(path) as file:
                file.write(head + b"\n")
                for state in states:
                    file.write(state)
        except OSError as error:
            raise EngineError(f"could not write the state to {path}: {error.strerror}") from error

    def restore(self, path: Path) -> None:
        """Read back a state; see `Engine.restore`. Raises EngineError."""
        self._check_open()
        own, *rest = _read_states(path, 1 + len(self._stats))
        blobs = dict(enumerate(rest, start=1))
        try:
            self._whole({"do": "read"}, lambda: self._rank.read(own), blobs)
        except LostRankError:
            raise
        except EngineError as error:
            self._whole({"do": "drop"}, self._rank.drop)
            raise EngineError(f"{path} is not a usable state of this model: {error}") from error
        self._whole({"do": "take"}, self._rank.take)

    @property
    def layers(self) -> tuple[range, ...]:
        """The numbers of the layers that each rank has."""
        return self._layers

    def stats(self) -> Stats:
        """Return a snapshot of the counters: of experts, those of all ranks."""
        own = self._rank.engine.stats()
        every = [own, *self._stats.values()]
        return replace(
            own,
            hits=sum(one.hits for one in every),
            misses=sum(one.misses for one in every),
            read_bytes=sum(one.read_bytes for one in every),
            stall_seconds=sum(one.stall_seconds for one in every),
            split_layers=sum(one.split_layers for one in every),
            decode_seconds=self._seconds,
        )

    def rank_stats(self) -> tuple[Stats, ...]:
        """Return the counters of each rank, as they were after its last step."""
        rest = (self._stats[rank] for rank in sorted(self._stats))
        return (self._rank.engine.stats(), *rest)

    def close(self) -> None:
        """End the engines of all ranks. May be called twice."""
        if self._closed:
            return
        self._closed = True
        try:
            if not self._others.lost:
                with suppress(LostRankError):  # who has gone already need not be ended
                    self._others.together({"do": "close"}, self._rank.close)
        finally:
            self._others.close()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the engine is closed: load the model again")

    def _told_interrupt(self) -> Head | None:
        """Return what the others are told while all decode."""
        if not self._interrupted:
            return None
        self._rank.engine.interrupt()
        return {"do": "interrupt"}

    def _together(
        self,
        head: Head,
        own: Callable[[], Any],
        meanwhile: Callable[[], Head | None] = lambda: None,
    ) -> Answers:
        """Have all ranks do something, and keep their counters."""
        found = self._others.together(head, own, meanwhile=meanwhile)
        self._note(found)
        return found

    def _whole(
        self, head: Head, own: Callable[[], Any], blobs: dict[int, bytes] | None = None
    ) -> Answers:
        """Do what does not take long to its end, whatever is pressed meanwhile."""
        self._check_open()
        with DeferredInterrupt(lambda: None) as interrupt:
            found = self._others.together(head, own, blobs=blobs)
        interrupt.check()
        self._note(found)
        return found

    def _note(self, found: Answers) -> None:
        for rank, message in found.others.items():
            if "stats" in message.head:
                self._stats[rank] = Stats(**message.head["stats"])

    def _level(self, n: int) -> int:
        """Cut all ranks back to the first n tokens, or to where all of them can go."""
        while not self._others.lost:
            found = self._whole({"do": "truncate", "n": n}, partial(self._rank.truncate, n))
            places = [found.own, *(each.head["position"] for each in found.others.values())]
            if len(set(places)) == 1:
                return int(places[0])
            n = min(places)
        raise self._others.lost


def _read_states(path: Path, n_ranks: int) -> list[bytes]:
    """Return the states of all ranks. Raises EngineError."""
    try:
        with path.open("rb") as file:
            head: Any = json.loads(file.readline(_MOST_HEAD_NBYTES))
            lengths = [int(length) for length in head["ranks"]]
            states = [file.read(length) for length in lengths]
    except OSError as error:
        reason = error.strerror or str(error)
        raise EngineError(f"{path} is not a usable state of this model: {reason}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"{path} is not a usable state of this model: it was not written by several ranks"
        ) from error
    if len(states) != n_ranks or [len(state) for state in states] != lengths:
        raise EngineError(
            f"{path} is not a usable state of this model: it is cut off, or of "
            f"{len(lengths)} ranks, and there are {n_ranks}"
        )
    return states
