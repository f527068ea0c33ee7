"""The drive that models are read from, and how it can be read."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from localmoe.doctor.check import Check, better, not_here, ok
from localmoe.doctor.system import System, existing
from localmoe.errors import ModelNotFoundError
from localmoe.planning.sizes import format_nbytes

_NETWORK = frozenset(
    [
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "9p",
        "ceph",
        "glusterfs",
        "lustre",
        "beegfs",
        "gpfs",
        "afs",
        "fuse.sshfs",
        "fuse.rclone",
    ]
)
_MEMORY = frozenset(("tmpfs", "ramfs"))
_VIRTUAL = ("vd", "xvd")
"""Their kernels say that they rotate, whatever is underneath."""
_LITTLE_BYTES = 5 << 30
_OCTAL = re.compile(r"\\([0-3][0-7]{2})")
"""How the kernel writes spaces, tabs, line ends and backslashes in paths."""
_DISABLED = "/proc/sys/kernel/io_uring_disabled"


class Mount(NamedTuple):
    """A line of /proc/self/mountinfo."""

    device: str
    """Major and minor number, such as 8:1."""
    point: str
    kind: str
    """Of the file system."""
    source: str


def check_ring(system: System) -> Check:
    """Ask for an io_uring, as the reader does."""
    name = "io_uring"
    if not system.is_linux:
        return not_here(name)
    error = system.ring_error()
    if error is None:
        return ok(name, "allowed")
    disabled = (system.read(_DISABLED) or "0").strip()
    without = "a few reads at a time are left to threads, which take cores from computing"
    if disabled != "0":
        return better(
            name,
            f"forbidden here (kernel.io_uring_disabled={disabled}): {without}",
            "sudo sysctl kernel.io_uring_disabled=0",
        )
    if error.errno in (errno.EPERM, errno.EACCES):
        return better(
            name,
            f"forbidden to this process, as in a container: {without}",
            "docker run --security-opt seccomp=unconfined",
        )
    if error.errno == errno.ENOMEM:
        return better(name, f"no room in locked memory: {without}", "ulimit -l unlimited")
    if error.errno == errno.ENOSYS:
        return better(
            name,
            f"not in this kernel, or too old: {without}",
            "sudo apt install linux-generic (Linux 5.6 or later), then restart",
        )
    return better(name, f"refused ({error.strerror}): {without}", "sudo dmesg | tail")


def check_direct(system: System, place: Path) -> Check:
    """Look whether reads go past the page cache; `place` is a model, or the folder of models."""
    name = "direct reads"
    where = existing(place)
    try:
        direct = system.is_direct(where)
    except (OSError, ModelNotFoundError) as error:
        return ok(name, f"cannot be tried in {where}: {getattr(error, 'strerror', None) or error}")
    if direct:
        return ok(name, f"yes, on the drive of {where}")
    return better(
        name,
        f"the file system of {where} has none: every read is copied once more",
        _move(place),
    )


def check_drive(system: System, place: Path) -> Check:
    """Say what kind of drive it is, and how much room is left."""
    name = "drive"
    where = existing(place)
    free = system.free_bytes(where)
    mount = mount_of(system, where)
    kind = _kind(system, mount)
    found = f"{kind}, {format_nbytes(free)} free"
    if mount and mount.kind in _NETWORK:
        return better(name, f"{found}: experts come over a network", _move(place))
    if mount and mount.kind in _MEMORY:
        return better(name, f"{found}: a model here takes memory twice", _move(place))
    if kind.startswith("rotating"):
        return better(name, f"{found}: a seek for every expert", _move(place))
    if free < _LITTLE_BYTES and os.path.isdir(place):
        return better(
            name, f"{found}: few models fit", f"du -h {quote(str(where))} | sort -h | tail"
        )
    return ok(name, found)


def _move(place: Path) -> str:
    if os.path.isfile(place):
        return f"cp {quote(str(place))} /a/folder/on/a/local/SSD, and run it there"
    return "export LOCALMOE_CACHE=/a/folder/on/a/local/SSD"


def mount_of(system: System, path: Path) -> Mount | None:
    """Return the file system that a path is on; None where that cannot be told."""
    parts = path.resolve().parts
    best: Mount | None = None
    for line in (system.read("/proc/self/mountinfo") or "").splitlines():
        mount = _parse(line)
        if mount is None:
            continue
        point = Path(mount.point).parts
        # Of several on one point the last one is seen.
        if parts[: len(point)] == point and len(point) >= len(
            Path(best.point).parts if best else ()
        ):
            best = mount
    return best


def _parse(line: str) -> Mount | None:
    before, dash, after = line.partition(" - ")
    left, right = before.split(" "), after.split(" ")
    if not dash or len(left) < 5 or len(right) < 2:
        return None
    point = _OCTAL.sub(lambda match: chr(int(match[1], 8)), left[4])
    return Mount(left[2], point, right[0], right[1])


def _kind(system: System, mount: Mount | None) -> str:
    if mount is None:
        return "a drive of unknown kind"
    named = f"{mount.kind} on {mount.source}"
    if Path(mount.source).name.startswith(_VIRTUAL):
        return f"virtual disk, {named}"
    rotates = _rotates(system, mount)
    if rotates is None:
        return named
    return f"rotating disk, {named}" if rotates else f"solid state, {named}"


def _rotates(system: System, mount: Mount) -> bool | None:
    """Whether the drive has moving parts; None where the kernel does not tell."""
    names = (f"/sys/dev/block/{mount.device}", f"/sys/class/block/{Path(mount.source).name}")
    for name in names:
        device = system.path(name).resolve()
        for folder in (device, device.parent):  # a partition's queue is that of its disk
            try:
                return (folder / "queue" / "rotational").read_text().strip() == "1"
            except OSError:
                continue
    return None
