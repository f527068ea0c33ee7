"""Says where a streamed token's time goes, with clocks around the hook and its parts.

What is compiled counts by itself. The clocks around what is Python cost time, about 0.3 us for each
of some 1,500 questions a token. So shares are taken from this run, and speeds from runs without it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from localmoe.backends.llama import hook as hook_module
from localmoe.backends.llama.engine import LlamaEngine

_READERS = "localmoe-reader"
Answer = dict[str, Any]


class Clock:
    """Adds up the time inside a function, and counts its calls."""

    def __init__(self) -> None:
        self.seconds, self.calls = 0.0, 0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with this clock around it."""

        def timed(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.perf_counter() - began
                self.calls += 1

        return timed


class Probe:
    """To be made before the engine is loaded: the hook binds its callback when it is made."""

    def __init__(self) -> None:
        self.questions, self.stops, self.kernels = Clock(), Clock(), Clock()
        asked = self.questions.around(hook_module.Hook.call)
        stopped = self.stops.around(hook_module.Hook.call)
        hook_module.Hook.call = (  # type: ignore[method-assign]
            lambda hook, node, ask, user: (asked if ask else stopped)(hook, node, ask, user)
        )
        # Products that are computed inside of the callback are compute, not Python.
        kernels = getattr(hook_module, "Kernels", None)
        if kernels:
            kernels.compute = self.kernels.around(kernels.compute)

    def snapshot(self, engine: LlamaEngine) -> Answer:
        """Return all counters; the difference of two is what lies between them."""
        stats, compiled = engine.stats(), engine.compiled_counts()
        inside = self.questions.seconds + self.stops.seconds
        if compiled:  # what it leaves to Python is in its own clock
            inside = compiled.stop_seconds
        return {
            "callback_seconds": inside,
            "questions": compiled.questions if compiled else self.questions.calls,
            "stops": compiled.stops if compiled else self.stops.calls,
            "kernel_seconds": self.kernels.seconds + (compiled.kernel_seconds if compiled else 0.0),
            "stall_seconds": stats.stall_seconds,
            "decode_seconds": stats.decode_seconds,
            "misses": stats.misses,
            "hits": stats.hits,
            **_processor_seconds(),
        }


def _processor_seconds() -> Answer:
    """Return processor time of the reader's threads and of the whole process."""
    readers = {t.native_id for t in threading.enumerate() if t.name.startswith(_READERS)}
    process = psutil.Process()
    spent = {t.id: t.user_time + t.system_time for t in process.threads()}
    times = process.cpu_times()
    switches = process.num_ctx_switches()
    return {
        "reader_cpu_seconds": sum(spent.get(thread, 0.0) for thread in readers if thread),
        "process_cpu_seconds": times.user + times.system,
        "voluntary_switches": switches.voluntary,
        "involuntary_switches": switches.involuntary,
    }


def per_token(before: Answer, after: Answer, tokens: int) -> Answer:
    """Return what one token took, and the parts of a streamed token's time, in seconds.

    `own_seconds` is the time inside the callback that is neither waiting nor multiplying.
    """
    spent = {name: (after[name] - before[name]) / tokens for name in after}
    outside = spent["stall_seconds"] + spent["kernel_seconds"]
    spent["own_seconds"] = spent["callback_seconds"] - outside
    return spent


def device_read_bytes() -> int | None:
    """Return what this process has had read from devices; None where the system does not say."""
    if not Path("/proc/self/io").exists():
        return None
    return int(psutil.Process().io_counters().read_bytes)
