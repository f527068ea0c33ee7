"""A rank above 0: it does what rank 0 says, until that ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from localmoe.backends.mlx.rank import Rank, settings_from_json, stats_to_json
from localmoe.backends.ranks.engine_thread import EngineThread, Outcome
from localmoe.backends.ranks.meeting import go_to_first
from localmoe.backends.ranks.told_errors import told
from localmoe.backends.ranks.wire import Head, Message, Wire
from localmoe.errors import EngineError, LocalMoeError, LostRankError
from localmoe.settings import Settings

_END_SECONDS = 30.0


def follow(own: Settings) -> None:
    """Be the rank that `own.ranks` names until rank 0 closes its engine.

    `own` has what each machine has of its own: `profile_dir`. Raises LostRankError where rank 0
    ended without a word.
    """
    assert own.ranks is not None
    with go_to_first(own.ranks) as wire:
        _Follower(own, wire).run()


class _Follower:
    def __init__(self, own: Settings, wire: Wire) -> None:
        assert own.ranks is not None
        self._own, self._wire = own, wire
        self._first = own.ranks.name(0)
        self._rank, self._thread = Rank(), EngineThread()

    def run(self) -> None:
        """Do what comes, in its order; an interrupt at once."""
        while True:
            try:
                message = self._wire.receive()
            except (EOFError, ValueError) as error:
                raise LostRankError(
                    f"{self._first} is gone: this part of the model ends, too"
                ) from error
            if message.head["do"] == "interrupt":
                self._rank.engine.interrupt()
                continue
            self._thread.call(self._call(message), self._report)
            if message.head["do"] == "close":
                self._thread.end(_END_SECONDS)
                return

    def _call(self, message: Message) -> Callable[[], tuple[Head, bytes]]:
        """Return what does as the message says, and what to answer."""
        does: dict[str, Callable[..., Any]] = {
            "load": self._load,
            "join": self._join,
            "decode": self._decode,
            "truncate": self._truncate,
            "mark": lambda _: self._rank.mark(),
            "save": lambda _: self._rank.saved(),
            "read": lambda sent: self._rank.read(sent.blob),
            "take": lambda _: self._rank.take(),
            "drop": lambda _: self._rank.drop(),
            "close": lambda _: self._rank.close(),
        }
        function = does[message.head["do"]]

        def answer() -> tuple[Head, bytes]:
            found = function(message)
            return (found if isinstance(found, dict) else {}), (
                found if isinstance(found, bytes) else b""
            )

        return answer

    def _load(self, message: Message) -> Head:
        settings = settings_from_json(message.head["settings"], self._own)
        chunk_tokens = self._rank.load(Path(message.head["path"]), settings)
        layers = self._rank.layers
        return {
            "chunk_tokens": chunk_tokens,
            "can_rewind": self._rank.engine.can_rewind,
            "layers": [layers.start, layers.stop],
        }

    def _join(self, message: Message) -> None:
        self._rank.join(message.head["chunk_tokens"])

    def _decode(self, message: Message) -> None:
        self._rank.decode(message.head["tokens"], message.head["logits"])

    def _truncate(self, message: Message) -> None:
        self._rank.truncate(message.head["n"])

    def _report(self, outcome: Outcome) -> None:
        """Answer rank 0. What nobody expected ends all ranks."""
        error = outcome.error
        head: Head = {}
        blob = b""
        if outcome.value:
            head, blob = outcome.value
        if isinstance(error, MemoryError):
            error = EngineError("memory is full")
        if isinstance(error, LocalMoeError) and not isinstance(error, LostRankError):
            head = {"failed": told(error)}
        elif error:
            head = {"fatal": str(error) or type(error).__name__}
        try:
            self._wire.send({**self._state(), **head}, blob)
        except OSError:  # rank 0 is gone: who receives will know
            self._wire.close()

    def _state(self) -> Head:
        """Return where this rank is."""
        try:
            engine = self._rank.engine
            return {"position": engine.position, "stats": stats_to_json(engine.stats())}
        except LocalMoeError:  # not loaded yet, or closed
            return {}
