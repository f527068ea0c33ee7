"""io_uring by itself: what comes back, in which order, and what a chain does when it breaks."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from localmoe.cache import ring as ring_module
from localmoe.cache.memory import HostMemory
from localmoe.cache.ring import Ring, open_ring

NBYTES = 4096
COUNT = 8


@pytest.fixture
def ring() -> Iterator[Ring]:
    made = open_ring(COUNT)
    if made is None:
        pytest.skip("no io_uring for this process: the reader's threads are used")
    yield made
    made.close()
    made.close()


@pytest.fixture
def memory() -> Iterator[HostMemory]:
    made = HostMemory(COUNT * NBYTES)
    yield made
    made.close()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "numbers"
    path.write_bytes(b"".join(bytes([i]) * NBYTES for i in range(COUNT)))
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


def finish(ring: Ring) -> dict[int, int]:
    """Wait for everything; return results by tag, in the order in which they came."""
    results: dict[int, int] = {}
    while ring.in_flight:
        results |= dict(ring.reap(wait=True))
    return results


def test_reads_bring_their_bytes(ring: Ring, memory: HostMemory, file: int) -> None:
    for round_ in range(3 * COUNT):  # the queues are rings: they wrap around
        for i in range(COUNT):
            place = (i + round_) % COUNT
            address = memory.address + place * NBYTES
            ring.queue(file, address, NBYTES, i * NBYTES, tag=i, chained=False)
        ring.submit()
        assert finish(ring) == dict.fromkeys(range(COUNT), NBYTES)
        for i in range(COUNT):
            place = (i + round_) % COUNT
            with memory.view[place * NBYTES : (place + 1) * NBYTES] as view:
                assert bytes(view) == bytes([i]) * NBYTES


def test_a_chain_ends_in_order(ring: Ring, memory: HostMemory, file: int) -> None:
    for i in range(COUNT):
        address = memory.address + i * NBYTES
        ring.queue(file, address, NBYTES, i * NBYTES, tag=i, chained=i < COUNT - 1)
    ring.submit()
    assert list(finish(ring)) == list(range(COUNT))


def test_what_follows_a_short_read_in_a_chain_is_cancelled(
    ring: Ring, memory: HostMemory, file: int
) -> None:
    end = COUNT * NBYTES
    ring.queue(file, memory.address, NBYTES, end - 100, tag=1, chained=True)
    ring.queue(file, memory.address + NBYTES, NBYTES, 0, tag=2, chained=False)
    ring.submit()
    assert finish(ring) == {1: 100, 2: -errno.ECANCELED}


def test_a_failed_read_says_why(ring: Ring, memory: HostMemory) -> None:
    ring.queue(-1, memory.address, NBYTES, 0, tag=7, chained=False)
    ring.submit()
    assert finish(ring) == {7: -errno.EBADF}


def test_nothing_is_waited_for_when_nothing_is_in_flight(ring: Ring) -> None:
    assert ring.reap(wait=True) == []
    assert ring.reap(wait=False) == []


def test_no_ring_where_the_kernel_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_module, "_SETUP", 100_000)  # no such system call
    assert open_ring(COUNT) is None


def test_no_ring_on_another_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_module.sys, "platform", "darwin")
    assert open_ring(COUNT) is None
