"""One file read past the page cache. Knows alignment, not what the bytes mean."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
from collections.abc import Callable, Iterable, Sequence

from localmoe.cache.bounce import Bounce
from localmoe.cache.memory import Memory, round_up
from localmoe.errors import ExpertReadError, ModelNotFoundError
from localmoe.weights.catalog import Extent

_F_NOCACHE = 48  # macOS <sys/fcntl.h>
_BLOCK_CANDIDATES = (512, 4096)
Preadv = Callable[[int, Sequence[memoryview], int], int]


class DirectFile:
    """Positioned reads that leave the page cache alone.

    `block` is the alignment in bytes that the file system wants for offset, length and address;
    1 where it refuses O_DIRECT (tmpfs, some network file systems): there reads are buffered and
    the pages dropped afterwards. Safe for use from several threads.
    """

    def __init__(self, path: str, preadv: Preadv = os.preadv) -> None:
        self.path = path
        self._preadv = preadv
        try:
            self._fd, self.block = _open_direct(path)
        except OSError as error:
            raise ModelNotFoundError(f"cannot open {path}: {error.strerror}") from error

    @property
    def direct(self) -> bool:
        """Whether reads bypass the page cache."""
        return self.block > 1

    @property
    def descriptor(self) -> int | None:
        """The open file, for direct reads by other means; None where `read` is the only way."""
        return self._fd if self.direct and self._preadv is os.preadv else None

    def read(self, memory: Memory, start: int, offset: int, nbytes: int) -> None:
        """Fill memory[start : start + nbytes] from the file at `offset`.

        O_DIRECT reads the enclosing aligned range. Where `start` and `offset` agree modulo the
        block, less than a block before and after is overwritten; else `start` must be aligned, and
        up to a block more than `nbytes`, rounded up to blocks, is. Raises ExpertReadError.
        """
        lead = offset % self.block
        target = start - lead if start % self.block == lead else start
        room = range(target, target + round_up(lead + nbytes, self.block))
        try:
            complete = self._fill(memory, room, offset - lead, lead + nbytes)
        except OSError as error:
            raise ExpertReadError(self.path, offset, nbytes, error) from error
        if not complete:
            raise ExpertReadError(self.path, offset, nbytes, None)
        if target + lead != start:
            address = memory.address + start
            ctypes.memmove(address, address + lead, nbytes)  # releases the GIL
        if not self.direct:
            self._drop_pages(offset, nbytes)

    def read_apart(
        self, memory: Memory, start: int, offset: int, nbytes: int, bounce: Bounce
    ) -> None:
        """Fill memory[start : start + nbytes] and write nothing around it, wherever that lies.

        Direct reads go into the buffer, as much as it holds at a time. Raises ExpertReadError.
        """
        if self.block == 1:  # buffered reads write what they are asked for, and no more
            self.read(memory, start, offset, nbytes)
            return
        done = 0
        while done < nbytes:
            lead = (offset + done) % self.block
            count = min(nbytes - done, bounce.nbytes - lead)
            self.read(bounce.memory, bounce.start + lead, offset + done, count)
            source = bounce.memory.address + bounce.start + lead
            ctypes.memmove(memory.address + start + done, source, count)  # releases the GIL
            done += count

    def close(self) -> None:
        """Close the file. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _fill(self, memory: Memory, room: range, offset: int, needed: int) -> bool:
        """Read at least `needed` bytes to the start of `room`; False if the file ends before."""
        done = 0
        while done < needed:
            # Released at once: a view in the traceback of an error would keep the memory mapped.
            with memory.view[room.start + done : room.stop] as view:
                got = self._preadv(self._fd, [view], offset + done)
            if done + got < needed:
                # After a short direct read the next one must start on a block again.
                got -= got % self.block
                if got == 0:
                    return False
            done += got
        return True

    def _drop_pages(self, offset: int, nbytes: int) -> None:
        if hasattr(os, "posix_fadvise"):
            first = offset - offset % mmap.PAGESIZE  # the kernel keeps pages named in part only
            length = round_up(offset + nbytes, mmap.PAGESIZE) - first
            os.posix_fadvise(self._fd, first, length, os.POSIX_FADV_DONTNEED)


def open_files(paths: Iterable[str]) -> dict[str, DirectFile]:
    """Open files, all of them or none. Raises ModelNotFoundError."""
    with contextlib.ExitStack() as undo:
        files = {path: undo.enter_context(contextlib.closing(DirectFile(path))) for path in paths}
        undo.pop_all()
    return files


def pieces(extent: Extent, start: int, block: int, longest_nbytes: int) -> list[tuple[Extent, int]]:
    """Cut a long read to `start` into pieces that several threads can share: [(what, where to)].

    Only where every piece can be placed without a copy: what is moved must stay in one piece.
    """
    path, offset, nbytes = extent
    if nbytes <= longest_nbytes or offset % block != start % block:
        return [(extent, start)]
    cuts = [0, *range(longest_nbytes - offset % block, nbytes, longest_nbytes), nbytes]
    return [
        (Extent(path, offset + a, b - a), start + a) for a, b in zip(cuts, cuts[1:], strict=False)
    ]


def _open_direct(path: str) -> tuple[int, int]:
    """Return a descriptor and the block size; 1 means buffered."""
    if sys.platform == "darwin":
        import fcntl

        fd = os.open(path, os.O_RDONLY)
        fcntl.fcntl(fd, _F_NOCACHE, 1)
        return fd, mmap.PAGESIZE
    flag = getattr(os, "O_DIRECT", 0)
    if flag:
        with contextlib.suppress(OSError):  # refused at open: buffered below
            fd = os.open(path, os.O_RDONLY | flag)
            block = _smallest_block(fd)
            if block:
                return fd, block
            os.close(fd)
    return os.open(path, os.O_RDONLY), 1


def _smallest_block(fd: int) -> int | None:
    """Find the alignment that the device takes by trying; None if it takes no direct read."""
    with mmap.mmap(-1, 2 * _BLOCK_CANDIDATES[-1]) as page, memoryview(page) as view:
        for block in _BLOCK_CANDIDATES:
            try:
                os.preadv(fd, [view[block : 2 * block]], 0)
            except OSError:
                continue
            return block
    return None
