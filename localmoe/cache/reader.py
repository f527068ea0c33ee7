"""Reads of expert parts: a few through io_uring, many by worker threads."""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from queue import SimpleQueue
from typing import NamedTuple, Protocol

from localmoe.cache.bounce import BounceBuffers
from localmoe.cache.direct_file import DirectFile, pieces
from localmoe.cache.memory import HostMemory, round_up
from localmoe.cache.ring import Ring, open_ring
from localmoe.errors import ExpertReadError
from localmoe.weights.catalog import ExpertKey, Extent

PIECE_NBYTES = 4 << 20
"""Longer parts are read in pieces of this size by several workers at once."""
_RING_DEPTH = 16
"""Reads that the thread which wants them starts itself. More than these are left to the workers,
who go on while that thread computes."""


class Puller(Protocol):
    """Brings what a load waits for when that thread looks, not by itself."""

    def look(self, *, wait: bool = False) -> None:
        """Tell loads what has come; with `wait`, once there is something."""
        ...

    def order(self, load: Load, part: int) -> None:
        """Have what is done next with a part that has come be done after it has come, in fact."""
        ...


class Load:
    """One expert on its way into a slot; says per part when its bytes are in place.

    Written by the reader, waited for by one thread at a time.
    """

    __slots__ = (
        *("_guard", "_locks", "_remaining"),
        *("error", "key", "part_nbytes", "pulled_by", "slot"),
    )

    def __init__(self, key: ExpertKey, slot: int, part_nbytes: Sequence[int]) -> None:
        self.key, self.slot, self.part_nbytes = key, slot, tuple(part_nbytes)
        self.error: Exception | None = None
        self.pulled_by: Puller | None = None
        """Where its parts are looked for, if no worker brings them."""
        self._guard = threading.Lock()
        self._remaining = [1] * len(part_nbytes)
        self._locks = [threading.Lock() for _ in part_nbytes]
        for lock in self._locks:
            lock.acquire()

    def expect(self, part: int, pieces: int) -> None:
        """Announce that a part arrives in so many pieces; before the first is submitted."""
        self._remaining[part] = pieces

    def arrived(self, part: int, error: Exception | None) -> None:
        """Count one piece as read, or failed."""
        with self._guard:
            self.error = self.error or error
            self._remaining[part] -= 1
            if self._remaining[part] == 0:
                self._locks[part].release()

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(self.part_nbytes)

    @property
    def n_remaining(self) -> int:
        """How many pieces of all parts have neither come nor failed; it only falls."""
        return sum(self._remaining)

    def ready(self, part: int) -> bool:
        """Return whether a part has come, or failed."""
        if self._remaining[part] and self.pulled_by:
            self.pulled_by.look()
        return self._remaining[part] == 0

    def wait(self, part: int) -> None:
        """Block until a part has come. Raises the error of the read that failed."""
        self.until(part)
        if self.error:
            raise self.error

    def drain(self) -> None:
        """Block until no worker writes to the slot any more; errors stay in `error`."""
        for part in range(len(self._locks)):
            self.until(part)

    def until(self, part: int) -> None:
        """Block until a part has come, or failed."""
        while self._remaining[part] and self.pulled_by:
            self.pulled_by.look(wait=True)
        if self._remaining[part]:
            lock = self._locks[part]
            lock.acquire()
            lock.release()
        if self.pulled_by:
            self.pulled_by.order(self, part)


class Job(NamedTuple):
    """One read: bytes of a file into memory at `start`, for a part of a load.

    `apart`: nothing around them may be written, so they pass through a buffer.
    """

    extent: Extent
    start: int
    load: Load
    part: int
    apart: bool = False


def split(job: Job, block: int) -> list[Job]:
    """Cut a long read into pieces that several workers can share."""
    offset = job.extent.offset
    if job.apart:  # it is copied anyway: cut it where reads of the file begin
        cut = pieces(job.extent, offset, block, PIECE_NBYTES)
        return [job._replace(extent=e, start=job.start + at - offset) for e, at in cut]
    cut = pieces(job.extent, job.start, block, PIECE_NBYTES)
    return [job._replace(extent=extent, start=start) for extent, start in cut]


def announce(jobs: Iterable[Job]) -> None:
    """Tell the loads in how many pieces their parts come: all of them, before the first is read."""
    counts: dict[tuple[Load, int], int] = {}
    for job in jobs:
        key = job.load, job.part
        counts[key] = counts.get(key, 0) + 1
    for (load, part), count in counts.items():
        load.expect(part, count)


class RingReads:
    """Reads through io_uring, seen to have ended when somebody looks."""

    def __init__(self, ring: Ring, files: Mapping[str, DirectFile], memory: HostMemory) -> None:
        self._ring, self._files, self._memory = ring, files, memory
        self._direct = {
            path: (file.descriptor, file.block)
            for path, file in files.items()
            if file.descriptor is not None
        }
        self._jobs: dict[int, tuple[Job, int]] = {}
        self._next_tag, self._address = 0, memory.address

    def takes(self, jobs: Sequence[Job]) -> bool:
        """Whether there is room for these reads, all of them direct and without a copy."""
        if len(jobs) + len(self._jobs) > _RING_DEPTH:
            return False
        for extent, start, _, _, apart in jobs:
            direct = self._direct.get(extent.path)
            if direct is None or apart or (extent.offset - start) % direct[1]:
                return False
        return True

    def submit(self, jobs: Sequence[Job]) -> None:
        """Start these reads: one of each load at a time, so that those given first come first."""
        chains: dict[int, list[Job]] = {}
        for job in jobs:
            job.load.pulled_by = self
            chains.setdefault(id(job.load), []).append(job)
        for chain in chains.values():
            for job in chain:
                self._queue(job, chained=job is not chain[-1])
        try:
            self._ring.submit()
        except OSError:  # the kernel is short of something: read what it did not take by ourselves
            for tag in self._ring.withdraw():
                read_now(self._files, self._memory, self._jobs.pop(tag)[0])

    def _queue(self, job: Job, *, chained: bool) -> None:
        path, offset, nbytes = job.extent
        descriptor, block = self._direct[path]
        lead = offset % block
        nbytes, tag = lead + nbytes, self._next_tag
        self._jobs[tag] = job, nbytes
        self._next_tag += 1
        address = self._address + job.start - lead
        whole = round_up(nbytes, block)
        self._ring.queue(descriptor, address, whole, offset - lead, tag, chained=chained)

    def look(self, *, wait: bool = False) -> None:
        """Tell the loads what has come; with `wait`, once there is something."""
        for tag, result in self._ring.reap(wait=wait):
            job, needed = self._jobs.pop(tag)
            if result < needed:  # failed, cut short or cancelled: again, for the error or the rest
                read_now(self._files, self._memory, job)
            else:
                job.load.arrived(job.part, None)

    def order(self, load: Load, part: int) -> None:
        """Do nothing: bytes that were read are there for everybody."""

    def close(self) -> None:
        """Wait for what is in flight."""
        while self._jobs:
            self.look(wait=True)
        self._ring.close()


def read_now(
    files: Mapping[str, DirectFile],
    memory: HostMemory,
    job: Job,
    buffers: BounceBuffers | None = None,
) -> None:
    """Read and tell the load, which gets every error: it belongs to whoever waits.

    What is to be read apart needs `buffers`.
    """
    path, offset, nbytes = job.extent
    error: Exception | None = None
    try:
        if job.apart:
            assert buffers  # the ring takes no such reads
            with buffers.lend() as bounce:
                files[path].read_apart(memory, job.start, offset, nbytes, bounce)
        else:
            files[path].read(memory, job.start, offset, nbytes)
    except Exception as caught:
        error = caught
    job.load.arrived(job.part, error)


class Reader:
    """A few threads that take reads from a queue; where there is io_uring, they take the long ones.

    Reads release the interpreter lock. `files` must hold every path that jobs name.
    """

    def __init__(
        self, files: Mapping[str, DirectFile], memory: HostMemory, workers: int, buffers: int = 0
    ) -> None:
        """`buffers`: how many reads apart may go on at once; none can where there are none."""
        self._files, self._memory = files, memory
        self._buffers = BounceBuffers(buffers)
        ring = open_ring(_RING_DEPTH)
        self._ring = RingReads(ring, files, memory) if ring else None
        self._queue: deque[Job] = deque()
        self._closed = False
        # True for each queued job, False to stop: a C-level queue wakes one worker a token.
        self._tokens: SimpleQueue[bool] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        try:
            for i in range(workers):
                name = f"localmoe-reader-{i}"
                thread = threading.Thread(target=self._work, name=name, daemon=True)
                thread.start()
                self._threads.append(thread)
        except BaseException:
            self.close()
            raise

    def submit(self, jobs: Iterable[Job]) -> None:
        """Start reads, or queue them; they start in this order."""
        if self._closed:
            raise RuntimeError("the reader is closed: nothing would ever arrive")
        parts: list[Job] = []
        for job in jobs:
            parts += split(job, self._files[job.extent.path].block)
        announce(parts)
        if self._ring and self._ring.takes(parts):
            self._ring.submit(parts)
            return
        self._queue.extend(parts)
        for _ in parts:
            self._tokens.put(True)

    def close(self) -> None:
        """Finish the reads that have begun, fail the others, end the threads.

        May be called twice. Whoever waits for a read that was dropped gets ExpertReadError.
        """
        self._closed = True
        if self._ring:
            self._ring.close()
            self._ring = None
        while self._queue:
            try:
                job = self._queue.popleft()
            except IndexError:  # a worker was faster
                break
            error = ExpertReadError(*job.extent, OSError(errno.ECANCELED, "the reader was closed"))
            job.load.arrived(job.part, error)
        for _ in self._threads:
            self._tokens.put(False)
        for thread in self._threads:
            thread.join()
        self._buffers.close()

    def read(self, job: Job) -> None:
        """Read in the thread that calls; the load gets every error."""
        read_now(self._files, self._memory, job, self._buffers)

    def _work(self) -> None:
        while self._tokens.get():
            try:
                job = self._queue.popleft()
            except IndexError:  # the reader was closed meanwhile
                continue
            self.read(job)
