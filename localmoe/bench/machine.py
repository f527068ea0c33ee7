"""What a figure was measured on: without that it says nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from pathlib import Path

import psutil

from localmoe.planning.machine import cpu_model
from localmoe.settings import available_threads

_PACKAGES = ("localmoe", "llama-cpp-python", "numpy")


def describe_machine() -> dict[str, object]:
    """Return processor, cores, memory and kernel. Names no host and no user."""
    return {
        "cpu": cpu_model(),
        "cores": available_threads(),
        "memory_bytes": int(psutil.virtual_memory().total),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def describe_versions() -> dict[str, str]:
    """Return the versions of what a figure depends on."""
    return {"python": platform.python_version(), **{p: _version(p) for p in _PACKAGES}}


def process_age_seconds() -> float:
    """Return how long ago this process was started; on Linux to a hundredth of a second."""
    try:
        text = Path("/proc/self/stat").read_text()
    except OSError:  # not Linux
        return time.time() - psutil.Process().create_time()
    started = int(text.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
