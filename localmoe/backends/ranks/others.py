"""Rank 0's view of the other ranks: what all do together, and what became of it on each."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from localmoe.backends.ranks.engine_thread import EngineThread, Outcome
from localmoe.backends.ranks.told_errors import OtherRankError, heard
from localmoe.backends.ranks.wire import Head, Message, Wire
from localmoe.closing import Closing
from localmoe.errors import LocalMoeError, LostRankError
from localmoe.settings import Ranks

_LOOK_SECONDS = 0.05
_END_SECONDS = 10.0


class Answers(NamedTuple):
    """What became of something that all ranks did."""

    own: Any
    """What this rank's part gave."""
    others: Mapping[int, Message]


class OtherRanks(Closing):
    """The connections to all other ranks, and the thread that does this rank's part.

    For one thread at a time. What is not seen to its end leaves the ranks out of step: then all
    of them are let go, and `lost` is what every further call raises.
    """

    def __init__(self, ranks: Ranks, wires: Mapping[int, Wire]) -> None:
        self._ranks, self._wires = ranks, wires
        self._thread = EngineThread()
        self._inbox: queue.SimpleQueue[tuple[int, Message | Outcome | None]] = queue.SimpleQueue()
        self._closing = False
        self.lost: LostRankError | None = None
        for rank, wire in wires.items():
            arguments = (rank, wire)
            threading.Thread(target=self._listen, args=arguments, daemon=True).start()

    def together(
        self,
        head: Head,
        own: Callable[[], Any],
        *,
        blobs: Mapping[int, bytes] | None = None,
        meanwhile: Callable[[], Head | None] = lambda: None,
    ) -> Answers:
        """Have all ranks do something; `own` is this one's part. Raises what one of them raised.

        `meanwhile` is asked now and then what the others should be told while they are at it.
        Raises LostRankError where one is gone.
        """
        if self.lost:
            raise self.lost
        try:
            for rank, wire in self._wires.items():
                self._say(rank, wire, head, (blobs or {}).get(rank, b""))
            self._thread.call(own, lambda outcome: self._inbox.put((self._ranks.rank, outcome)))
            found = self._collect(meanwhile)
        except LostRankError as error:
            self.lost = error
            self._let_go()
            raise
        except BaseException as error:
            self.lost = LostRankError("what the ranks did together was broken off: start again")
            self.lost.__cause__ = error
            self._let_go()
            raise
        outcome = found.pop(self._ranks.rank)
        assert isinstance(outcome, Outcome)
        others = {n: each for n, each in found.items() if isinstance(each, Message)}
        self._raise_first(outcome, others)
        return Answers(outcome.value, others)

    def close(self) -> None:
        """Let the others go: they end. May be called twice."""
        self._closing = True
        self._let_go()
        self._thread.end(0 if self.lost else _END_SECONDS)

    def _let_go(self) -> None:
        for wire in self._wires.values():
            wire.close()

    def _listen(self, rank: int, wire: Wire) -> None:
        """Pass on what a rank says, until it ends; for a thread of its own."""
        while True:
            try:
                message = wire.receive()
            except (EOFError, ValueError):
                self._inbox.put((rank, None))
                if not self._closing and self._ranks.on_lost:
                    self._ranks.on_lost()
                return
            self._inbox.put((rank, message))

    def _say(self, rank: int, wire: Wire, head: Head, blob: bytes = b"") -> None:
        try:
            wire.send(head, blob)
        except OSError as error:
            raise self._gone(rank) from error

    def _collect(self, meanwhile: Callable[[], Head | None]) -> dict[int, Message | Outcome]:
        found: dict[int, Message | Outcome] = {}
        while len(found) < self._ranks.size:
            try:
                rank, what = self._inbox.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                said = meanwhile()
                for other, wire in self._wires.items() if said else ():
                    self._say(other, wire, said or {})
                continue
            if what is None:
                raise self._gone(rank)
            if isinstance(what, Message) and "fatal" in what.head:
                raise LostRankError(f"{self._ranks.name(rank)}: {what.head['fatal']}")
            if isinstance(what, Outcome) and isinstance(what.error, LostRankError):
                raise self._reason(what.error)
            found[rank] = what
        return found

    def _reason(self, error: LostRankError) -> LostRankError:
        """Return who is gone, where it is known by now; else what this rank noticed of it."""
        while True:
            try:
                rank, what = self._inbox.get(timeout=1.0)
            except queue.Empty:
                return error
            if what is None:
                return self._gone(rank)
            if isinstance(what, Message) and "fatal" in what.head:
                return LostRankError(f"{self._ranks.name(rank)}: {what.head['fatal']}")

    def _gone(self, rank: int) -> LostRankError:
        said = self._ranks.ended() if self._ranks.ended else None
        more = f" ({said})" if said else ""
        return LostRankError(
            f"{self._ranks.name(rank)} is gone{more}: a part of the model is missing. Start again"
        )

    def _raise_first(self, outcome: Outcome, others: Mapping[int, Message]) -> None:
        """Raise the error that was the reason for others, this rank's first."""
        errors: list[BaseException] = [outcome.error] if outcome.error else []
        errors += [
            heard(message.head["failed"], self._ranks.name(rank))
            for rank, message in sorted(others.items())
            if message.head.get("failed")
        ]
        reasons = [one for one in errors if not isinstance(one, OtherRankError)]
        for error in reasons or errors:
            if not isinstance(error, LocalMoeError | MemoryError):
                self.lost = LostRankError("rank 0 failed in an unexpected way: start again")
                self._let_go()
            raise error
