"""The reader where the kernel has io_uring: no worker takes part in a few demand reads."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from localmoe.cache.direct_file import DirectFile
from localmoe.cache.memory import HostMemory
from localmoe.cache.reader import Job, Load, Reader
from localmoe.cache.ring import Ring, open_ring
from localmoe.errors import ExpertReadError
from localmoe.weights.catalog import ExpertKey, Extent

PART, COUNT = 8192, 40
CONTENT = b"".join(bytes([i]) * PART for i in range(COUNT))


class Rig:
    """A reader over a real file, whose parts are read to where they lie in the file."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(CONTENT)
        self.path, self.file = path, DirectFile(str(path))
        self.memory = HostMemory(len(CONTENT))
        self.reader = Reader({str(path): self.file}, self.memory, 2)

    def submit(self, *places: int, shift: int = 0) -> Load:
        load = Load(ExpertKey(0, places[0]), 0, [PART] * len(places))
        self.reader.submit(
            Job(Extent(str(self.path), place * PART, PART), place * PART + shift, load, part)
            for part, place in enumerate(places)
        )
        return load

    def at(self, place: int, shift: int = 0) -> bytes:
        return bytes(self.memory.view[place * PART + shift :][:PART])


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "weights")
    ring = open_ring(1)
    if ring is None or not made.file.direct:
        pytest.skip("no io_uring, or no direct reads, here: the reader's threads are used")
    ring.close()
    yield made
    made.reader.close()
    made.file.close()
    made.memory.close()


def test_a_few_reads_need_no_worker(rig: Rig) -> None:
    loads = [rig.submit(i, i + 10, i + 20) for i in range(5)]
    for part in range(3):
        for i, load in enumerate(loads):
            assert load.pulled_by
            load.wait(part)
            assert load.ready(part)
            assert rig.at(i + 10 * part) == bytes([i + 10 * part]) * PART


def test_more_than_fit_are_left_to_the_workers(rig: Rig) -> None:
    load = rig.submit(*range(COUNT))
    assert load.pulled_by is None
    load.drain()
    assert rig.at(COUNT - 1) == bytes([COUNT - 1]) * PART


def test_a_part_that_must_be_moved_is_left_to_a_worker(rig: Rig) -> None:
    load = rig.submit(3, shift=rig.file.block // 2)
    assert load.pulled_by is None
    load.drain()


def test_what_a_truncated_file_lacks_is_one_error_and_the_rest_arrives(rig: Rig) -> None:
    os.truncate(rig.path, 30 * PART + 100)
    load = rig.submit(2, 30, 35, 4)
    load.drain()
    with pytest.raises(ExpertReadError, match="weights"):
        load.wait(1)
    assert rig.at(2) == bytes([2]) * PART
    assert rig.at(4) == bytes([4]) * PART


@pytest.mark.parametrize("n_taken", [0, 1, 4])
def test_what_the_kernel_does_not_take_is_read_without_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, n_taken: int
) -> None:
    enter, left = Ring._enter, [n_taken]

    def take_few(self: Ring, n_submit: int, n_wait: int, flags: int) -> int:
        if not n_submit:
            return enter(self, n_submit, n_wait, flags)
        if not left[0]:
            raise OSError(errno.EAGAIN, "no memory for a request")
        begun = enter(self, min(n_submit, left[0]), 0, flags)
        left[0] -= begun
        return begun

    monkeypatch.setattr(Ring, "_enter", take_few)
    rig.submit(*range(6)).drain()
    monkeypatch.undo()
    rig.submit(6, 7).drain()
    for place in range(8):
        assert rig.at(place) == bytes([place]) * PART


def test_closing_waits_for_reads_under_way(rig: Rig) -> None:
    load = rig.submit(*range(12))
    rig.reader.close()
    assert load.n_remaining == 0
    assert rig.at(11) == bytes([11]) * PART
