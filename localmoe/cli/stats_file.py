"""What --stats writes, and the line under an answer."""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

from localmoe.backends.base import Engine
from localmoe.chat.usage import Phase, Usage
from localmoe.errors import SettingsError
from localmoe.replacing import replaced_file

_LEAST_SPLIT_SECONDS = 0.05
"""What passes cost is worth telling from here on: less would be shown as 0.0 s."""


def peak_rss_bytes() -> int:
    """Return the most memory that this process has held at once."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # not Linux
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    # Not ru_maxrss: it keeps the peak of the process that started this one.
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(kib) * 1024


def stats_of(engine: Engine, usage: Usage) -> dict[str, object]:
    """Return the figures of a run; those of experts are of decode, and under prefill once more.

    A dense model has no experts: their figures are None.
    """
    figures = _expert_figures if engine.plan.experts else _no_expert_figures
    return {
        "tokens": usage.answer_tokens,
        "tokens_per_second": {
            "prefill": usage.prefill.tokens_per_second,
            "decode": usage.decode.tokens_per_second,
        },
        **figures(usage.decode),
        "peak_rss_bytes": peak_rss_bytes(),
        "budget_bytes": engine.plan.budget_bytes,
        "load_seconds": engine.load_seconds,
        "prefill": {
            "tokens": usage.prefill.tokens,
            **figures(usage.prefill),
            "split_layers": usage.prefill.stats.split_layers,
            "split_seconds": usage.prefill.stats.split_seconds,
        },
    }


def check_writable(path: Path) -> None:
    """Raise SettingsError early if a file cannot be written there."""
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise SettingsError(f"--stats {path}: cannot be written; name a file in a folder that can")


def write_stats(path: Path, figures: dict[str, object]) -> None:
    """Write figures as JSON under a temporary name, then rename it. Raises SettingsError."""
    try:
        with replaced_file(path) as file:
            file.write(f"{json.dumps(figures, indent=2)}\n".encode())
    except OSError as error:
        raise SettingsError(f"--stats {path}: could not be written: {error.strerror}") from error


def status_line(engine: Engine, usage: Usage) -> str:
    """Return a line such as: 42 tokens, 23.1 tok/s, 98 % of experts from memory."""
    words = [f"{usage.answer_tokens} tokens" if usage.answer_tokens != 1 else "1 token"]
    if usage.decode.tokens:
        words.append(f"{usage.decode.tokens_per_second:.1f} tok/s")
        if engine.plan.streams:
            words.append(f"{usage.decode.stats.hit_rate:.0%} of experts from memory")
    seconds = usage.prefill.stats.split_seconds
    if seconds >= _LEAST_SPLIT_SECONDS:
        words.append(f"{seconds:.1f} s of the prompt spent on passes, for want of memory")
    return ", ".join(words).replace("%", " %")


def _expert_figures(phase: Phase) -> dict[str, float | None]:
    return {
        "hit_rate": phase.stats.hit_rate,
        "bytes_read_per_token": phase.per_token(phase.stats.read_bytes),
        "stall_seconds_per_token": phase.per_token(phase.stats.stall_seconds),
    }


def _no_expert_figures(phase: Phase) -> dict[str, float | None]:
    return dict.fromkeys(_expert_figures(phase))
