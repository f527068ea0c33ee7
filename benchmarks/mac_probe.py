"""What a Mac says of itself, and what happens to its memory while something runs."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import mlx.core as mx
import psutil
from manifest import HERE, REPOSITORY, Answer

from localmoe.backends.mlx import device
from localmoe.backends.mlx.pressure import system_pressure
from localmoe.bench.machine import describe_machine, describe_versions

_SYSCTLS = (
    *("machdep.cpu.brand_string", "hw.model", "hw.memsize", "hw.pagesize"),
    *("hw.perflevel0.physicalcpu", "hw.perflevel1.physicalcpu", "iogpu.wired_limit_mb"),
)
_LOOK_SECONDS = 0.5
_TIME = Path("/usr/bin/time")
_PEAKS = {
    "max_resident_bytes": re.compile(r"(\d+)\s+maximum resident set size"),
    "peak_footprint_bytes": re.compile(r"(\d+)\s+peak memory footprint"),
}


def machine() -> Answer:
    """Return machine, system and versions; what only a Mac tells is None elsewhere."""
    is_mac = sys.platform == "darwin"
    return {
        **describe_machine(),
        "versions": {**describe_versions(), "mlx": mx.__version__},
        "macos": _said("sw_vers", "-productVersion") if is_mac else None,
        "sysctl": {name: _said("sysctl", "-n", name) for name in _SYSCTLS} if is_mac else None,
        "metal": dict(mx.device_info()) if device.has_metal() else None,
        "available_memory_bytes": psutil.virtual_memory().available,
        "swap_used_bytes": psutil.swap_memory().used,
    }


def _said(*command: str) -> str | None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


class MemoryWatch:
    """Looks at the system's memory twice a second, in a thread of its own."""

    def __init__(self) -> None:
        self._source, self._over = system_pressure(), threading.Event()
        self._levels: Counter[str] = Counter()
        self._least_available, self._most_swap = sys.maxsize, 0
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self._levels[self._source() if self._source else "unknown"] += 1
            available = psutil.virtual_memory().available
            self._least_available = min(self._least_available, available)
            self._most_swap = max(self._most_swap, psutil.swap_memory().used)
            if self._over.wait(_LOOK_SECONDS):
                return

    def seen(self) -> Answer:
        """Return how often which level of pressure was seen, and the extremes."""
        return {
            "pressure_levels": dict(self._levels),
            "least_available_bytes": self._least_available,
            "most_swap_bytes": self._most_swap,
        }


def peaks(text: str) -> Answer:
    """Return what macOS's `time -l` says of memory; nothing where it says nothing."""
    found = {name: pattern.search(text) for name, pattern in _PEAKS.items()}
    return {name: int(match[1]) for name, match in found.items() if match}


def watched(command: list[str], seconds: float, text: str = "") -> tuple[int | None, str, Answer]:
    """Run Python for so long at most: its status, its output, what its memory and the system did.

    The status is None where it took longer: it and all that it started are ended then.
    """
    full = [sys.executable, *command]
    if sys.platform == "darwin" and _TIME.exists():
        full = [str(_TIME), "-l", *full]
    path = os.pathsep.join([str(REPOSITORY), str(HERE)])
    process = subprocess.Popen(
        full,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )
    status: int | None = None
    with MemoryWatch() as watch:
        try:
            out, error = process.communicate(text, timeout=max(1.0, seconds))
            status = process.returncode
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            out, error = process.communicate()
    seen: dict[str, Any] = {**watch.seen(), **peaks(error)}
    return status, out if status == 0 else f"{out}\n{error}", seen
