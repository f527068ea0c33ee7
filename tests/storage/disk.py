"""A disk that refuses unaligned reads, and fails, stalls or comes short when a test says so."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from localmoe.cache.direct_file import DirectFile

PATIENCE_SECONDS = 20.0
"""How long anything here waits before it says that the test hangs."""


class Disk:
    """Stands behind `DirectFile`s through their `preadv`, whatever the real file system takes.

    `began` lists the reads in the order in which they started, as (path, offset).
    """

    def __init__(self) -> None:
        self.began: list[tuple[str, int]] = []
        self.faults: dict[tuple[str, int], int] = {}
        """Errno of reads that touch a byte; 0 makes the file end there."""
        self.longest_read_nbytes = 1 << 30
        self.delay_seconds: Callable[[], float] = lambda: 0.0
        self._changed = threading.Condition()
        self._permits: int | None = None
        self._fds: dict[str, int] = {}

    def open(self, path: str, block: int) -> DirectFile:
        """Open a file as if its file system wanted this alignment; 1: it has no direct reads."""
        file = DirectFile(path, partial(self._preadv, path, block))
        file.block = block
        if path not in self._fds:
            self._fds[path] = os.open(path, os.O_RDONLY)
        return file

    def hold(self) -> None:
        """Let no read go on from here."""
        with self._changed:
            self._permits = 0

    def let(self, n_reads: int) -> None:
        """Let so many of the held reads go on."""
        with self._changed:
            assert self._permits is not None, "nothing is held"
            self._permits += n_reads
            self._changed.notify_all()

    def resume(self) -> None:
        """Let all reads go on."""
        with self._changed:
            self._permits = None
            self._changed.notify_all()

    def wait_for_reads(self, n_reads: int) -> None:
        """Block until so many reads have begun since the disk was made."""
        with self._changed:
            done = self._changed.wait_for(lambda: len(self.began) >= n_reads, PATIENCE_SECONDS)
        assert done, f"only {len(self.began)} of {n_reads} reads have begun"

    def close(self) -> None:
        """Close the disk's own descriptors; end what is held."""
        self.resume()
        while self._fds:
            os.close(self._fds.popitem()[1])

    def _preadv(
        self, path: str, block: int, _fd: int, buffers: Sequence[memoryview], offset: int
    ) -> int:
        (view,) = buffers
        address = ctypes.addressof(ctypes.c_char.from_buffer(view))
        if offset % block or len(view) % block or address % block:
            raise OSError(errno.EINVAL, "not aligned")
        self._begin(path, offset)
        time.sleep(self.delay_seconds())
        hit = [at for file, at in self.faults if file == path and 0 <= at - offset < len(view)]
        if hit and (code := self.faults[path, min(hit)]):
            raise OSError(code, os.strerror(code))
        got = os.preadv(self._fds[path], [view], offset)
        return min([got, self.longest_read_nbytes, *(at - offset for at in hit)])

    def _begin(self, path: str, offset: int) -> None:
        with self._changed:
            self.began.append((path, offset))
            self._changed.notify_all()
            freed = self._changed.wait_for(lambda: self._permits != 0, PATIENCE_SECONDS)
            assert freed, "a read was held and never let go"
            if self._permits:
                self._permits -= 1
