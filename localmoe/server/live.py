"""What the page's picture is drawn from: which experts were asked for, and how fast it goes.

The engine's thread publishes frames while somebody watches; while nobody does, it looks at one
number per token.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from typing import Any, Literal

import numpy as np

from localmoe.backends.base import Engine, Stats, WatchedEngine
from localmoe.chat.usage import Phase, Usage
from localmoe.server.api_error import ApiError
from localmoe.weights.catalog import ExpertKey

Frame = dict[str, Any]
_FRAME_SECONDS = 0.04
"""Frames come no faster; what happens between two of them is told by the next."""
_RECENT_TOKENS = 24
"""Speed and hit rate are those of so many tokens."""
_WAITING_FRAMES = 16
"""A watcher that is slower loses frames: each tells anew what is in memory."""
_MAX_WATCHERS = 16
Kind = Literal["hit", "miss", "ahead"]


class Live:
    """Frames for everybody who watches one engine.

    `rss` returns the memory in use, in bytes; `drive_rate` is how many bytes per second the drive
    gives, None where that was not measured.
    """

    def __init__(
        self, engine: Engine, rss: Callable[[], int], drive_rate: float | None = None
    ) -> None:
        self._engine, self._rss, self._drive_rate = engine, rss, drive_rate
        self._watched = engine if isinstance(engine, WatchedEngine) else None
        layers = self._watched.catalog.layers if self._watched else ()
        self._rows = {layer.layer: row for row, layer in enumerate(layers)}
        self._n_experts = max((layer.n_experts for layer in layers), default=0)
        self._expert_nbytes = self._watched.catalog.expert_nbytes if self._watched else 0
        self._used = max((layer.n_experts_used for layer in layers), default=0)
        self._real = [layer.n_experts for layer in layers]
        self._watchers: dict[asyncio.Queue[Frame | None], asyncio.AbstractEventLoop] = {}
        self._held: Collection[ExpertKey] | None = None
        self._is_watching = False
        self._asked: dict[str, list[int]] = {"hit": [], "miss": [], "ahead": []}
        self._recent: deque[Phase] = deque(maxlen=_RECENT_TOKENS)
        self._sent_at = 0.0
        self._answered = 0

    # --- in the event loop

    @property
    def watchers(self) -> int:
        """How many watch."""
        return len(self._watchers)

    async def watch(self, wake: Callable[[Callable[[], None]], None]) -> AsyncIterator[Frame]:
        """Yield frames until the server stops, the first at once.

        `wake` has a function called by the engine's thread. Raises ApiError where too many watch.
        """
        if len(self._watchers) >= _MAX_WATCHERS:
            raise ApiError(429, f"{_MAX_WATCHERS} pages watch already", retry_seconds=10)
        frames: asyncio.Queue[Frame | None] = asyncio.Queue(_WAITING_FRAMES)
        self._watchers[frames] = asyncio.get_running_loop()
        try:
            yield self.greeting()
            wake(self.idle)
            while (frame := await frames.get()) is not None:
                yield frame
        finally:
            del self._watchers[frames]

    def greeting(self) -> Frame:
        """Return what does not change: the model's shape and the plan of its memory."""
        plan = self._engine.plan
        parts = ("base", "resident", "kv", "compute", "slot", "mark")
        return {
            "type": "hello",
            "layers": list(self._rows),
            "experts": self._n_experts,
            "experts_of_layer": self._real,
            "used": self._used,
            "streams": plan.streams,
            "architecture": self._engine.architecture,
            "memory": {f"{name}_bytes": getattr(plan, f"{name}_bytes") for name in parts},
            "budget_bytes": plan.budget_bytes,
            "slots": plan.slots,
            "all_experts": plan.experts,
            "expert_bytes": self._expert_nbytes,
            "context_tokens": plan.context_tokens,
        }

    def close(self) -> None:
        """End all watching."""
        for frames in list(self._watchers):
            _put(frames, None)

    # --- in the engine's thread

    def begin(self) -> None:
        """An answer begins."""
        self._recent.clear()
        self._answered = 0
        self._look()

    def prompt(self, _stage: str, done: int, total: int) -> None:
        """So much of a prompt has been read."""
        if self._look():
            self._engine.stats()  # has what was asked for told
            self._publish({"phase": "prompt", "done": done, "total": total}, always=False)

    def token(self, usage: Usage, waiting: int) -> None:
        """A token has been said; `usage` is that of its answer so far."""
        if self._look():
            self._recent.append(usage.decode)
            self._answered = usage.answer_tokens
            self._publish({"phase": "answer", "waiting": waiting}, always=False)

    def idle(self) -> None:
        """Nothing is being said any more; what was said last is told."""
        if self._look():
            self._engine.stats()
            self._publish({"phase": "idle"}, always=True)

    def _look(self) -> bool:
        """Watch the engine if somebody watches us; return whether anybody does."""
        wanted = bool(self._watchers)
        if wanted != self._is_watching:
            self._is_watching = wanted
            if self._watched:
                self._held = self._watched.watch_experts(self._note if wanted else None)
            self._forget()
        return wanted

    def _note(self, kind: Kind, keys: Iterable[ExpertKey]) -> None:
        rows, n = self._rows, self._n_experts
        self._asked[kind].extend(rows[key.layer] * n + key.expert for key in keys)

    def _forget(self) -> None:
        for numbers in self._asked.values():
            numbers.clear()

    def _publish(self, frame: Frame, *, always: bool) -> None:
        now = time.monotonic()
        if not always and now - self._sent_at < _FRAME_SECONDS:
            return
        self._sent_at = now
        frame |= {kind: self._bits(numbers) for kind, numbers in self._asked.items()}
        self._forget()
        frame |= {
            "type": "frame",
            "held": self._held_bits(),
            "held_experts": self._engine.plan.experts if self._held is None else len(self._held),
            "position": self._engine.position,
            "answer_tokens": self._answered,
            "rss_bytes": self._rss(),
            **self._speed(),
        }
        for frames, loop in list(self._watchers.items()):
            with contextlib.suppress(RuntimeError):  # that loop is closed
                loop.call_soon_threadsafe(_put, frames, frame)

    def _held_bits(self) -> str | None:
        """Return the experts in memory; None: all are."""
        if self._held is None:
            return None
        rows, n = self._rows, self._n_experts
        return self._bits([rows[key.layer] * n + key.expert for key in self._held])

    def _bits(self, numbers: list[int]) -> str:
        """Return one bit for each expert, layer by layer, the lowest first, in base64."""
        bits = np.zeros(len(self._rows) * self._n_experts, bool)
        bits[numbers] = True
        return base64.b64encode(np.packbits(bits, bitorder="little").tobytes()).decode()

    def _speed(self) -> Frame:
        """Return speed, hits, waiting and fraction of the limit over the last tokens."""
        if len(self._recent) < 2:
            names = ("tokens_per_second", "hit_rate", "stall", "read_bytes", "fraction_of_limit")
            return dict.fromkeys(names)
        first, last = self._recent[0], self._recent[-1]
        seconds, tokens = last.seconds - first.seconds, last.tokens - first.tokens
        stats: Stats = last.stats - first.stats
        return {
            "tokens_per_second": tokens / seconds if seconds > 0 else None,
            "hit_rate": stats.hit_rate if self._rows else None,
            "stall": min(stats.stall_seconds / seconds, 1.0) if seconds > 0 else None,
            "read_bytes": stats.read_bytes / max(tokens, 1),
            "fraction_of_limit": self._fraction(seconds, stats),
        }

    def _fraction(self, seconds: float, stats: Stats) -> float | None:
        """Return the least time that the machine needs, over the time that was taken.

        That is the longer of reading what was read at the drive's rate, and of computing: what was
        not waited. None where the drive's rate would tell and is not known.
        """
        if seconds <= 0 or (stats.read_bytes and self._drive_rate is None):
            return None
        reading = stats.read_bytes / self._drive_rate if self._drive_rate else 0.0
        return min(max(reading, seconds - stats.stall_seconds) / seconds, 1.0)


def _put(frames: asyncio.Queue[Frame | None], frame: Frame | None) -> None:
    if frames.full():
        frames.get_nowait()
    frames.put_nowait(frame)
