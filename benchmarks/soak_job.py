"""What the processes of the soak have in common: the job, the steps that are repeated, holdings."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from localmoe import Engine, Settings, load
from localmoe.backends.base import FloatArray

Step = dict[str, Any]
"""A call of the engine: `decode` with the sha256 of its logits, or another with its position after.

A cancelled `decode` is only a step where the engine could not go back to where it began.
"""


class SoakError(Exception):
    """The engine did something that it must not do."""


@dataclass(frozen=True)
class Job:
    """What the processes of one model are told. They write into `folder`."""

    model: str
    folder: str
    budget_bytes: int
    context_tokens: int
    chunk_tokens: int
    threads: int
    tokens: int
    checks: int
    seed: int

    def load(self, memory_bytes: int | None) -> Engine:
        """Return an engine that streams within so much memory; None: all experts are resident."""
        engine = load(
            self.model,
            Settings(
                memory_bytes=memory_bytes,
                context_tokens=self.context_tokens,
                prefill_chunk_tokens=self.chunk_tokens,
                threads=self.threads,
            ),
        )
        plan = engine.plan
        if plan.streams != (memory_bytes is not None):
            raise SoakError(f"{plan.slots} of {plan.experts} experts fit: not what was wanted")
        if plan.prefill_chunk_tokens != self.chunk_tokens:
            raise SoakError(f"prefill chunks are {plan.prefill_chunk_tokens} tokens long")
        return engine


def digest(rows: FloatArray) -> str:
    return hashlib.sha256(rows.tobytes()).hexdigest()


def position_of(history: list[Step]) -> int:
    """Return how many tokens are in the context after these steps."""
    position = 0
    for step in history:
        position = step["position"] if "position" in step else position + len(step["tokens"])
    return position


class Holdings:
    """What this process and its control group hold."""

    def __init__(self) -> None:
        self._process, self._group = psutil.Process(), group_usage_file()

    def now(self) -> dict[str, int]:
        """Return memory of the process and of its control group, threads and descriptors."""
        return {
            "rss_bytes": int(self._process.memory_info().rss),
            "group_bytes": int(self._group.read_text()),
            "threads": min(self._threads()),
            "descriptors": self._process.num_fds(),
        }

    def _threads(self) -> Iterator[int]:
        """Count threads a few times: one that was joined may take a moment to be gone."""
        for _ in range(5):
            yield self._process.num_threads()
            time.sleep(0.002)


def group_usage_file() -> Path:
    """Return the file that says how much memory the control group of membox holds."""
    for name in ("memory/membox-{}/memory.usage_in_bytes", "membox-{}/memory.current"):
        path = Path("/sys/fs/cgroup", name.format(os.getppid()))
        if path.exists():
            return path
    raise SoakError("not under a memory limit: start it with benchmarks/membox")
