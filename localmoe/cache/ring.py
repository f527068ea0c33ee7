"""io_uring on Linux: reads that begin and end without a thread of their own.

Beside threads that compute, each read by another one costs them a moment: the kernel takes a core
away to start it, and again to say that it is done. Here the thread that wants the bytes starts all
reads with one system call, and looks later what has come. Only what is needed of the kernel's
interface is declared, after its header linux/io_uring.h.
"""

from __future__ import annotations

import contextlib
import ctypes as C
import errno
import mmap
import os
import platform
import sys

_SETUP, _ENTER = 425, 426  # the same on every architecture but alpha
_OP_READ = 22
_ENTER_GETEVENTS = 1
_LINK = 1 << 2
_FEATURE_SINGLE_MMAP, _FEATURE_READ = 1 << 0, 1 << 3  # RW_CUR_POS came with OP_READ, in 5.6
_OFFSET_RINGS, _OFFSET_ENTRIES = 0, 0x1000_0000
_MACHINES = frozenset({"x86_64", "aarch64"})
_U32, _U64 = C.c_uint32, C.c_uint64


class _SubmissionOffsets(C.Structure):
    _fields_ = [
        *((n, _U32) for n in ("head", "tail", "ring_mask", "ring_entries", "flags", "dropped")),
        *((n, _U32) for n in ("array", "reserved")),
        ("user_address", _U64),
    ]


class _CompletionOffsets(C.Structure):
    _fields_ = [
        *((n, _U32) for n in ("head", "tail", "ring_mask", "ring_entries", "overflow", "cqes")),
        *((n, _U32) for n in ("flags", "reserved")),
        ("user_address", _U64),
    ]


class _Parameters(C.Structure):
    """struct io_uring_params."""

    _fields_ = [
        *((n, _U32) for n in ("sq_entries", "cq_entries", "flags", "sq_thread_cpu")),
        *((n, _U32) for n in ("sq_thread_idle", "features", "wq_fd")),
        ("reserved", _U32 * 3),
        ("sq", _SubmissionOffsets),
        ("cq", _CompletionOffsets),
    ]


class _Entry(C.Structure):
    """struct io_uring_sqe."""

    _fields_ = [
        ("opcode", C.c_uint8),
        ("flags", C.c_uint8),
        ("priority", C.c_uint16),
        ("fd", C.c_int32),
        ("offset", _U64),
        ("address", _U64),
        ("nbytes", _U32),
        ("rw_flags", _U32),
        ("tag", _U64),
        ("other", _U64 * 3),
    ]


class _Completion(C.Structure):
    """struct io_uring_cqe."""

    _fields_ = [("tag", _U64), ("result", C.c_int32), ("flags", _U32)]


class Ring:
    """A submission and a completion queue shared with the kernel. For one thread at a time."""

    def __init__(self, entries: int) -> None:
        """Raises OSError where the kernel has no io_uring, or does not let this process use it."""
        if sys.platform != "linux" or platform.machine() not in _MACHINES:
            raise OSError(errno.ENOSYS, "no io_uring on this platform")
        self._syscall = C.CDLL(None, use_errno=True).syscall
        self._syscall.restype = C.c_long
        self._fd, parameters = self._setup(entries)
        try:
            self._map(parameters)
        except BaseException:
            os.close(self._fd)
            raise
        self._queued: list[int] = []
        self.in_flight = 0
        """Reads that were submitted and whose end was not seen yet."""

    def _setup(self, entries: int) -> tuple[int, _Parameters]:
        # No flags: each completion interrupts the thread for a moment, in which the kernel starts
        # the next read of a chain. With COOP_TASKRUN that would wait for a system call.
        parameters = _Parameters()
        fd = self._syscall(_SETUP, C.c_uint(entries), C.byref(parameters))
        if fd < 0:
            raise OSError(C.get_errno(), "io_uring_setup")
        wanted = _FEATURE_SINGLE_MMAP | _FEATURE_READ
        if parameters.features & wanted != wanted:
            os.close(fd)
            raise OSError(errno.ENOSYS, "this io_uring is too old")
        return int(fd), parameters

    def _map(self, p: _Parameters) -> None:
        rings_nbytes = max(
            p.sq.array + p.sq_entries * C.sizeof(_U32),
            p.cq.cqes + p.cq_entries * C.sizeof(_Completion),
        )
        self._rings = mmap.mmap(self._fd, rings_nbytes, offset=_OFFSET_RINGS)
        entries_nbytes = p.sq_entries * C.sizeof(_Entry)
        self._entries_map = mmap.mmap(self._fd, entries_nbytes, offset=_OFFSET_ENTRIES)
        self._tail = _U32.from_buffer(self._rings, p.sq.tail)
        self._order = (_U32 * p.sq_entries).from_buffer(self._rings, p.sq.array)
        self._entries = (_Entry * p.sq_entries).from_buffer(self._entries_map)
        self._seen = _U32.from_buffer(self._rings, p.cq.head)
        self._done = _U32.from_buffer(self._rings, p.cq.tail)
        self._completions = (_Completion * p.cq_entries).from_buffer(self._rings, p.cq.cqes)
        self._mask, self._completion_mask = p.sq_entries - 1, p.cq_entries - 1
        self.entries = p.sq_entries
        """How many reads may be queued at once."""

    def queue(  # noqa: PLR0913 (a read is all of this)
        self, fd: int, address: int, nbytes: int, offset: int, tag: int, *, chained: bool
    ) -> None:
        """Note a read for the next `submit`; at most `entries` may be queued.

        `chained`: the read that is queued next begins when this one has ended, and is cancelled if
        it fails or is cut short.
        """
        tail = self._tail.value
        index = tail & self._mask
        entry = self._entries[index]
        entry.opcode, entry.fd, entry.flags = _OP_READ, fd, _LINK if chained else 0
        entry.address, entry.nbytes, entry.offset, entry.tag = address, nbytes, offset, tag
        self._order[index] = index
        self._tail.value = (tail + 1) & 0xFFFF_FFFF
        self._queued.append(tag)

    def submit(self) -> None:
        """Start what is queued. Raises OSError; what was not started then stays queued."""
        while self._queued:
            begun = self._enter(len(self._queued), 0, 0)
            if not begun:
                raise OSError(errno.EAGAIN, "io_uring_enter took nothing")
            del self._queued[:begun]
            self.in_flight += begun

    def withdraw(self) -> list[int]:
        """Take back what is queued and was not started; return the tags."""
        tags, self._queued = self._queued, []
        self._tail.value = (self._tail.value - len(tags)) & 0xFFFF_FFFF
        return tags

    def reap(self, *, wait: bool) -> list[tuple[int, int]]:
        """Return the tag and the result of each read that has ended, waiting for one if asked to.

        A result is the number of bytes read, or a negative errno.
        """
        if not self._n_done and not (wait and self.in_flight):
            return []
        # Where something is there already, the call orders the loads below on processors that
        # would not do so by themselves.
        self._enter(0, 0 if self._n_done else 1, _ENTER_GETEVENTS)
        ended = []
        for _ in range(self._n_done):
            completion = self._completions[self._seen.value & self._completion_mask]
            ended.append((completion.tag, completion.result))
            self._seen.value = (self._seen.value + 1) & 0xFFFF_FFFF
        self.in_flight -= len(ended)
        return ended

    def close(self) -> None:
        """Give the queues back; nothing may be in flight. May be called twice."""
        if self._fd < 0:
            return
        # Views into the mappings keep them from being closed.
        del self._tail, self._order, self._entries
        del self._seen, self._done, self._completions
        self._rings.close()
        self._entries_map.close()
        os.close(self._fd)
        self._fd = -1

    @property
    def _n_done(self) -> int:
        return int((self._done.value - self._seen.value) & 0xFFFF_FFFF)

    def _enter(self, n_submit: int, n_wait: int, flags: int) -> int:
        while True:
            n = self._syscall(
                _ENTER, self._fd, C.c_uint(n_submit), C.c_uint(n_wait), C.c_uint(flags), None, None
            )
            if n >= 0:
                return int(n)
            if C.get_errno() != errno.EINTR:
                raise OSError(C.get_errno(), "io_uring_enter")


def open_ring(entries: int) -> Ring | None:
    """Return a ring, or None where there is no io_uring for this process."""
    with contextlib.suppress(OSError):  # not Linux, too old, or forbidden: threads read instead
        return Ring(entries)
    return None
