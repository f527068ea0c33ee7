"""Graphics processors. localmoe computes on none of them yet; a plan may count with them."""

from __future__ import annotations

from localmoe.doctor.check import Check, ok
from localmoe.doctor.system import System

_UNUSED = "localmoe does not use it yet"
_QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")


def check_graphics(system: System) -> Check:
    """Say which there are."""
    found = [*_nvidia(system), *_amd(system), *_metal(system)]
    return ok("GPU", f"{'; '.join(found)}; {_UNUSED}" if found else "none, and none is needed")


def _nvidia(system: System) -> list[str]:
    listed = [line.strip() for line in (system.run(_QUERY) or "").splitlines() if line.strip()]
    if listed:
        return listed
    folder = system.path("/proc/driver/nvidia/gpus")
    count = sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0
    return [f"{count} by NVIDIA (nvidia-smi tells nothing)"] if count else []


def _amd(system: System) -> list[str]:
    return ["AMD, through /dev/kfd"] if system.path("/dev/kfd").exists() else []


def _metal(system: System) -> list[str]:
    is_apple = system.platform == "darwin" and system.machine == "arm64"
    return ["Apple, through Metal"] if is_apple else []
