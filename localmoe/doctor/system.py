"""The system as checks see it. A test gives them a made-up one."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from platform import machine as _machine

from localmoe.cache.direct_file import DirectFile
from localmoe.cache.ring import Ring

_COMMAND_SECONDS = 10
_PROBE_NBYTES = 16 << 10


def _run(command: Sequence[str]) -> str | None:
    """Return what a command prints; None where it is not there, fails or does not end."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_COMMAND_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _ring_error() -> OSError | None:
    """Return why there is no io_uring for this process; None: there is."""
    try:
        Ring(4).close()
    except OSError as error:
        return error
    return None


def _is_direct(path: Path) -> bool:
    """Whether a file, or one in a folder, can be read past the page cache.

    Raises OSError where nothing can be written to the folder, ModelNotFoundError.
    """
    if path.is_file():
        return _file_is_direct(path)
    with tempfile.NamedTemporaryFile(prefix=".localmoe-doctor-", dir=path) as file:
        file.write(bytes(_PROBE_NBYTES))
        file.flush()
        return _file_is_direct(Path(file.name))


def _file_is_direct(path: Path) -> bool:
    file = DirectFile(str(path))
    try:
        return file.direct
    finally:
        file.close()


@dataclass(frozen=True)
class System:
    """Where to look, and whom to ask."""

    environment: Mapping[str, str]
    root: Path = Path("/")
    """What /proc, /sys and /dev are below."""
    platform: str = sys.platform
    machine: str = field(default_factory=_machine)
    python: tuple[int, int, int] = sys.version_info[:3]
    run: Callable[[Sequence[str]], str | None] = _run
    which: Callable[[str], str | None] = shutil.which
    version: Callable[[str], str | None] = _version
    """Of an installed package; None: it is not there."""
    ring_error: Callable[[], OSError | None] = _ring_error
    is_direct: Callable[[Path], bool] = _is_direct
    free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free

    @property
    def is_linux(self) -> bool:
        """Whether there is a /proc to look into."""
        return self.platform == "linux"

    def path(self, name: str) -> Path:
        """Return where a path such as /proc/meminfo is."""
        return self.root / name.lstrip("/")

    def read(self, name: str) -> str | None:
        """Return a file's text; None where it cannot be read."""
        try:
            return self.path(name).read_text(errors="replace")
        except OSError:
            return None

    def fields(self, name: str) -> dict[str, str]:
        """Return the `key: value` lines of a file; the first of each key."""
        found: dict[str, str] = {}
        for line in (self.read(name) or "").splitlines():
            key, colon, value = line.partition(":")
            if colon:
                found.setdefault(key.strip(), value.strip())
        return found

    def group_files(self, controller: str, name: str) -> Iterator[str]:
        """Yield the text of a file in each control group above this process, innermost first.

        `name` "cpu.max" is looked for in version 2; where it has no such file, in the folder of
        `controller` of version 1.
        """
        for line in (self.read("/proc/self/cgroup") or "").splitlines():
            _, controllers, group = (line.split(":", 2) + ["", ""])[:3]
            if controllers == "":
                base = "/sys/fs/cgroup"
            elif controller in controllers.split(","):
                base = f"/sys/fs/cgroup/{controller}"
            else:
                continue
            steps = [part for part in group.split("/") if part not in ("", "..")]
            for depth in range(len(steps), -1, -1):
                text = self.read("/".join((base, *steps[:depth], name)))
                if text is not None:
                    yield text.strip()


def existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists and may be seen."""
    path = path.absolute()
    while not os.path.exists(path) and path != path.parent:
        path = path.parent
    return path
