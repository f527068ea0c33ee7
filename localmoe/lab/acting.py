"""What reading ahead on guesses would gain or lose: a replay against a clock.

An Lru cache serves the demands. As soon as a layer's own misses are being read, the experts that
the next layer is expected to use are put in the queue behind them. What has not begun when that
layer is routed is taken back; what has begun goes on, and demands wait for it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from localmoe.lab.speed import Machine
from localmoe.prediction.score import warm_up_tokens
from localmoe.prediction.trace import NO_GUESS, Numbers, Trace

Key = tuple[int, int]
_BUSY_SHARE = 0.9


@dataclass
class _Tally:
    """What is counted, of the tokens that are scored."""

    began: float = 0.0
    demand_reads: int = 0
    ahead_reads: int = 0
    useful: int = 0
    busy_seconds: float = 0.0


@dataclass
class _Replay:
    """The state of one replay: the clock, the queue and the slots."""

    machine: Machine
    slots: int
    clock: float = 0.0
    free_at: float = 0.0
    """When the device has done all that has begun."""
    held: OrderedDict[Key, float] = field(default_factory=OrderedDict)
    """And when each is, or was, there."""
    unused: set[Key] = field(default_factory=set)
    """What was read ahead and has not been asked for."""
    tally: _Tally = field(default_factory=_Tally)
    routed_at: float = 0.0
    """When the last layer was routed: from then on its successor is guessed."""

    def demand(self, keys: list[Key]) -> None:
        """Compute up to the routing, wait for a layer's experts, and compute those."""
        self.clock += self.machine.before_seconds
        missing = [key for key in keys if key not in self.held]
        self.tally.useful += len(self.unused.intersection(keys))
        self.unused.difference_update(keys)
        for key in keys:
            if key in self.held:
                self.held.move_to_end(key)
        seconds = self.machine.device.read_seconds(len(missing), self.machine.expert_nbytes)
        there_at = max(self.clock, self.free_at) + seconds if missing else self.clock
        for key in missing:
            self._insert(key, there_at)
        if missing:
            self.free_at = there_at
            self.tally.demand_reads += len(missing)
            self.tally.busy_seconds += seconds
        waited = max((self.held[key] for key in keys), default=self.clock)
        self.routed_at = self.clock
        self.clock = max(self.clock + self.machine.experts_seconds, waited)

    def read_ahead(self, keys: list[Key]) -> None:
        """Read what begins before the next layer is routed, the surest first."""
        device, nbytes = self.machine.device, self.machine.expert_nbytes
        start = max(self.free_at, self.routed_at)
        for at, key in enumerate(key for key in keys if key not in self.held):
            if start >= self.clock + self.machine.before_seconds:
                return
            seconds = nbytes / device.bytes_per_second + (0 if at else device.latency_seconds)
            start += seconds
            self._insert(key, start)
            self.free_at = start
            self.unused.add(key)
            self.tally.ahead_reads += 1
            self.tally.busy_seconds += seconds

    def _insert(self, key: Key, there_at: float) -> None:
        self.held[key] = there_at
        if len(self.held) > self.slots:
            gone, _ = self.held.popitem(last=False)
            self.unused.discard(gone)


def measure_acting(trace: Trace, machine: Machine, slots: int) -> dict[str, Any]:
    """Return, for each predictor of the trace and a perfect one, what acting on it would do."""
    used = trace.n_experts_used
    tables: dict[str, Numbers | None] = {"nothing": None, "perfect": trace.routing}
    tables |= {name: guesses[:, :, :used] for name, guesses in trace.guesses.items()}
    found = {name: _run(trace, machine, slots, table) for name, table in tables.items()}
    base = found["nothing"]
    for name, figures in found.items():
        figures["speed_ratio"] = figures["tokens_per_second"] / base["tokens_per_second"]
        figures["why"] = _why(name, figures, base)
    return found


def _run(trace: Trace, machine: Machine, slots: int, guesses: Numbers | None) -> dict[str, Any]:
    replay, first = _Replay(machine, slots), warm_up_tokens(trace)
    table = None if guesses is None else guesses.tolist()
    n_layers = len(trace.layers)
    for token, rows in enumerate(trace.routing.tolist()):
        if token == first:
            replay.tally = _Tally(began=replay.clock)
        for layer, experts in enumerate(rows):
            replay.demand([(layer, expert) for expert in dict.fromkeys(experts)])
            if table is not None and layer + 1 < n_layers:
                wanted = table[token][layer + 1]
                replay.read_ahead([(layer + 1, e) for e in wanted if e != NO_GUESS])
    tally, tokens = replay.tally, trace.n_tokens - first
    seconds = replay.clock - tally.began
    return {
        "tokens_per_second": tokens / seconds,
        "demand_reads_per_token": tally.demand_reads / tokens,
        "reads_ahead_per_token": tally.ahead_reads / tokens,
        "useful_share": tally.useful / tally.ahead_reads if tally.ahead_reads else None,
        "device_busy_share": min(1.0, tally.busy_seconds / seconds),
    }


def _why(name: str, figures: dict[str, Any], base: dict[str, Any]) -> str:
    """Say in a sentence what the figures show."""
    if name == "nothing":
        return f"The device is busy {base['device_busy_share']:.0%} of the time."
    if not figures["reads_ahead_per_token"]:
        return "Nothing was read ahead: all that was expected was there, or the device never idle."
    saved = base["demand_reads_per_token"] - figures["demand_reads_per_token"]
    wasted = figures["reads_ahead_per_token"] * (1 - figures["useful_share"])
    said = (
        f"{figures['useful_share']:.0%} of the reads ahead were used; {saved:.1f} reads per token "
        f"need not be waited for from their start, {wasted:.1f} were for nothing"
    )
    if base["device_busy_share"] > _BUSY_SHARE:
        return f"{said}, on a device that is busy {base['device_busy_share']:.0%} of the time."
    return f"{said}."
