"""What memory this process may use: physical memory and control groups, v1 and v2."""

from __future__ import annotations

import ctypes
import platform
import re
from collections.abc import Iterator
from pathlib import Path

_MARGIN_FRACTION = 0.05
_MARGIN_MIN_BYTES = 256 << 20
_NO_LIMIT_BYTES = 1 << 60  # cgroup v1 writes "no limit" as a number close to 2**63


def available_memory_bytes(
    cgroup_root: Path = Path("/sys/fs/cgroup"), proc_cgroup: Path = Path("/proc/self/cgroup")
) -> int:
    """Return how large this process may grow, less a margin: bytes.

    The least of free physical memory and what every control group above the process leaves; what
    the process holds already counts as its own.
    """
    import psutil  # takes its time, and help needs none of it

    own = held_memory_bytes()
    rooms = [int(psutil.virtual_memory().available) + own]
    rooms += [room + own for room in _group_rooms(cgroup_root, proc_cgroup)]
    room = min(rooms)
    return max(0, room - max(_MARGIN_MIN_BYTES, int(room * _MARGIN_FRACTION)))


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name, "unknown" where the system does not tell."""
    try:
        text = cpuinfo.read_text()
    except OSError:  # not Linux
        return platform.processor() or "unknown"
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or "unknown"


def held_memory_bytes() -> int:
    """Return what this process holds, after it gave back what it has freed: bytes."""
    import psutil  # takes its time, and help needs none of it

    _trim_heap()
    return int(psutil.Process().memory_info().rss)


def huge_pages_by_default(
    setting: Path = Path("/sys/kernel/mm/transparent_hugepage/enabled"),
) -> bool:
    """Whether memory that nobody asked to be in huge pages may be: where one byte takes 2 MiB."""
    try:
        return "[always]" in setting.read_text()
    except OSError:  # no such pages
        return False


def _trim_heap() -> None:
    """Have the C library give freed memory back to the system: glibc keeps it for later.

    Else what a closed engine has freed would count as taken, and the next one get fewer slots.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


def _group_rooms(cgroup_root: Path, proc_cgroup: Path) -> Iterator[int]:
    """Yield what each limiting control group has left, reclaimable page cache counted as free."""
    try:
        lines = proc_cgroup.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            for root in (cgroup_root, cgroup_root / "unified"):
                for limit_name in ("memory.max", "memory.high"):  # above "high" it is throttled
                    yield from _rooms_up(root, path, limit_name, "memory.current")
        elif "memory" in controllers.split(","):
            root = cgroup_root / "memory"
            yield from _rooms_up(root, path, "memory.limit_in_bytes", "memory.usage_in_bytes")


def _rooms_up(root: Path, path: str, limit_name: str, usage_name: str) -> Iterator[int]:
    """Walk from the process's group to the root: a limit anywhere on the way binds.

    In a container the path may be that of the host; then only the root exists.
    """
    group = root / path.lstrip("/")
    while True:
        limit, usage = _number(group / limit_name), _number(group / usage_name)
        if limit is not None and usage is not None and limit < _NO_LIMIT_BYTES:
            yield max(0, limit - usage + _reclaimable(group))
        if group == root or root not in group.parents:
            return
        group = group.parent


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max" means no limit


def _reclaimable(group: Path) -> int:
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    values = dict(line.split()[:2] for line in lines if line)
    # v1 counts children only in the total_ lines, v2 always.
    return int(values.get("total_inactive_file", values.get("inactive_file", 0)))
