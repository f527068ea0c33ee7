"""Memory: how much there is, who limits it, and in what pages it comes."""

from __future__ import annotations

import psutil

from localmoe.doctor.check import Check, better, not_here, ok
from localmoe.doctor.system import System
from localmoe.planning.machine import available_memory_bytes
from localmoe.planning.sizes import format_nbytes

_LITTLE_BYTES = 1 << 30
_NO_LIMIT_BYTES = 1 << 60
_EAGER_SWAPPINESS = 10
_RING_KERNEL = (5, 12)
"""Before it, the queues of io_uring counted as locked memory."""
_RING_NBYTES = 64 << 10
_HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"


def check_memory(system: System, wanted_bytes: int | None) -> Check:
    """Say what this process may use; `wanted_bytes` is a budget that was set."""
    name = "memory"
    total = int(psutil.virtual_memory().total)
    groups = system.path("/sys/fs/cgroup")
    free = available_memory_bytes(groups, system.path("/proc/self/cgroup"))
    limit = _group_limit_bytes(system)
    found = f"{format_nbytes(free)} available of {format_nbytes(total)}"
    if limit is not None and limit < total:
        found += f"; a control group allows {format_nbytes(limit)}"
    if wanted_bytes is not None and wanted_bytes > free:
        return better(
            name,
            f"{found}; --memory {format_nbytes(wanted_bytes)} is more, and will swap or be killed",
            f"localmoe run --memory {free >> 20}MiB",
        )
    if free >= _LITTLE_BYTES:
        return ok(name, found)
    if limit is not None and limit < total:
        mend = "raise the limit: systemd-run --user --scope -p MemoryMax=infinity localmoe run, "
        mend += "or docker run --memory"
    else:
        mend = "close what is large: ps -eo rss,comm --sort=-rss | head"
    return better(name, f"{found}: hardly any experts fit", mend)


def _group_limit_bytes(system: System) -> int | None:
    """Return the tightest limit of the control groups above this process; None: there is none."""
    names = ("memory.max", "memory.high", "memory.limit_in_bytes")
    texts = [text for name in names for text in system.group_files("memory", name)]
    limits = [int(text) for text in texts if text.isdigit() and int(text) < _NO_LIMIT_BYTES]
    return min(limits, default=None)


def check_swap(system: System) -> Check:
    """Look whether the system is eager to put memory away that experts were read into."""
    name = "swap"
    if not system.is_linux:
        return not_here(name)
    total = _kib(system.fields("/proc/meminfo").get("SwapTotal", ""))
    if not total:
        return ok(name, "none")
    text = (system.read("/proc/sys/vm/swappiness") or "").strip()
    swappiness = int(text) if text.isdigit() else None
    found = f"{format_nbytes(total)}, swappiness {'unknown' if swappiness is None else swappiness}"
    if swappiness is not None and swappiness > _EAGER_SWAPPINESS:
        return better(
            name,
            f"{found}: experts in memory may be put away to keep files in the page cache",
            f"sudo sysctl vm.swappiness={_EAGER_SWAPPINESS}",
        )
    return ok(name, found)


def check_locked_memory(system: System) -> Check:
    """Look at the limit on locked memory, which old kernels count io_uring's queues by."""
    name = "locked memory"
    if not system.is_linux:
        return not_here(name)
    line = next(
        (
            line
            for line in (system.read("/proc/self/limits") or "").splitlines()
            if line.startswith("Max locked memory")
        ),
        "",
    )
    soft = (line.removeprefix("Max locked memory").split() or ["unknown"])[0]
    found = f"limit {format_nbytes(int(soft))}" if soft.isdigit() else f"limit {soft}"
    if soft.isdigit() and int(soft) < _RING_NBYTES and kernel_version(system) < _RING_KERNEL:
        return better(name, f"{found}: too little for io_uring on this kernel", "ulimit -l 1024")
    return ok(name, f"{found}; localmoe locks nothing")


def check_huge_pages(system: System) -> Check:
    """Look whether slots may lie in huge pages."""
    name = "huge pages"
    if not system.is_linux:
        return not_here(name)
    text = system.read(_HUGE_PAGES)
    if text is None:
        return better(
            name,
            "this kernel has none: reads into memory take up to twice as long",
            "grep HUGEPAGE /boot/config-$(uname -r), and boot a kernel that has them",
        )
    chosen = text.partition("[")[2].partition("]")[0]
    if chosen == "never":
        return better(
            name,
            "never: reads into memory take up to twice as long",
            f"echo madvise | sudo tee {_HUGE_PAGES}",
        )
    return ok(name, chosen or text.strip())


def kernel_version(system: System) -> tuple[int, ...]:
    """Return the first two numbers of the kernel's version; zeros where they cannot be read."""
    release = (system.read("/proc/sys/kernel/osrelease") or "").split("-")[0]
    numbers = [int(part) for part in release.split(".")[:2] if part.strip().isdigit()]
    return tuple(numbers) if len(numbers) == 2 else (0, 0)


def _kib(text: str) -> int:
    """Return the bytes of a value such as "1024 kB"."""
    number = text.split()[0] if text else ""
    return int(number) * 1024 if number.isdigit() else 0
