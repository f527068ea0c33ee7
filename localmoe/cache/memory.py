"""Anonymous memory at fixed addresses. Knows pages, not what is stored in them."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable
from typing import Protocol

from localmoe.errors import BudgetError

HUGE_PAGE_NBYTES = 2 << 20
_PREFAULT_STEP_NBYTES = 64 << 20
_MADV_DONTNEED = 4  # Linux
_MADV_HUGEPAGE = 14  # Linux
_MADV_POPULATE_WRITE = 23  # Linux 5.14

OnBytes = Callable[[int], None]
_libc = ctypes.CDLL(None)
if sys.platform == "linux":
    _libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


CAN_RELEASE = sys.platform == "linux"
"""Whether pages can be given back while their addresses stay."""


def round_up(value: int, step: int) -> int:
    """Return the smallest multiple of `step` that is not below `value`."""
    return -(-value // step) * step


class Memory(Protocol):
    """Memory that slots lie in. Positions in it are bytes from `address` on."""

    address: int
    nbytes: int
    view: memoryview

    def touch(self, start: int, stop: int) -> None:
        """See HostMemory."""
        ...

    def release(self, start: int, stop: int) -> None:
        """See HostMemory."""
        ...

    def close(self) -> None:
        """See HostMemory."""
        ...


class HostMemory:
    """A private region of address space, aligned to huge pages.

    A page takes memory when it is first touched; `prefault` touches a range at once. Reads into
    reused huge pages run at twice the speed of reads into fresh 4 KiB pages.
    """

    def __init__(self, nbytes: int, guard_nbytes: int = 0) -> None:
        """Map `nbytes`, followed by `guard_nbytes` of address space that reads as zeros.

        Raises BudgetError where this process may not have so much address space.
        """
        self.nbytes = nbytes
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        total = nbytes + guard_nbytes + HUGE_PAGE_NBYTES
        try:
            self._map = mmap.mmap(-1, total, flags=flags)
        except OSError as error:
            raise BudgetError(
                f"could not map {total} bytes of memory: {error.strerror}. "
                "Use a smaller --memory, or lift the limit on address space (ulimit -v)."
            ) from error
        anchor = ctypes.c_char.from_buffer(self._map)
        raw = ctypes.addressof(anchor)
        del anchor  # an exported pointer would keep the map from closing
        self.address = round_up(raw, HUGE_PAGE_NBYTES)
        skip = self.address - raw
        self.view = memoryview(self._map)[skip : skip + nbytes]
        _advise(self.address, nbytes, _MADV_HUGEPAGE)

    def prefault(
        self, start: int = 0, stop: int | None = None, on_bytes: OnBytes | None = None
    ) -> None:
        """Touch every page of a range now, before anything is stored in it.

        Older kernels need it overwritten. `on_bytes` is told how many bytes each step added.
        Other threads run meanwhile.
        """
        stop = self.nbytes if stop is None else stop
        for position in range(start, stop, _PREFAULT_STEP_NBYTES):
            nbytes = min(_PREFAULT_STEP_NBYTES, stop - position)
            address = self.address + position
            if not _advise(address, nbytes, _MADV_POPULATE_WRITE):
                ctypes.memset(address, 0, nbytes)
            if on_bytes:
                on_bytes(nbytes)

    def touch(self, start: int, stop: int) -> None:
        """Have the pages of a range there, whatever they hold; older kernels leave that to others.

        Other threads run meanwhile.
        """
        _advise(self.address + start, stop - start, _MADV_POPULATE_WRITE)

    def release(self, start: int, stop: int) -> None:
        """Give the huge pages back that lie in a range whole; what they held is lost.

        They are there again when touched. Raises BudgetError where the system keeps them.
        """
        release_pages(self.address + start, self.address + stop)

    def close(self) -> None:
        """Give the memory back. May be called twice. Raises BufferError while a slice is held."""
        if not self._map.closed:
            self.view.release()
            self._map.close()


def _advise(address: int, nbytes: int, advice: int) -> bool:
    """Return whether the kernel took the advice; older ones know fewer kinds, others none.

    Not mmap.madvise: that holds the interpreter lock for as long as the kernel needs.
    """
    if sys.platform != "linux":
        return False
    start = address - address % mmap.PAGESIZE
    return bool(_libc.madvise(start, nbytes + address - start, advice) == 0)


def release_pages(start: int, stop: int) -> None:
    """Give anonymous memory between two addresses back, as far as it is whole huge pages.

    A part of a huge page would stay taken. Raises BudgetError where the system keeps them.
    """
    first = round_up(start, HUGE_PAGE_NBYTES)
    nbytes = stop - stop % HUGE_PAGE_NBYTES - first
    if nbytes > 0 and not _advise(first, nbytes, _MADV_DONTNEED):
        raise BudgetError(
            f"{nbytes} bytes of memory were to be given back, but the system kept them. Use a "
            "smaller --memory."
        )
