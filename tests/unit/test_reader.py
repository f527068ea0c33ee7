"""Workers: reads in order of use, side by side; failed, cut in pieces, closed."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from localmoe.cache import reader as reader_module
from localmoe.cache.direct_file import DirectFile
from localmoe.cache.memory import HostMemory
from localmoe.cache.reader import Job, Load, Reader, split
from localmoe.errors import ExpertReadError
from localmoe.weights.catalog import ExpertKey, Extent
from storage import Disk
from storage.disk import PATIENCE_SECONDS

PART = 1024
CONTENT = bytes(i % 251 for i in range(64 * PART))
MIB = 1 << 20


class Rig:
    """A reader over one file, with a slot for every part number of the file."""

    def __init__(self, path: Path, workers: int) -> None:
        path.write_bytes(CONTENT)
        self.path, self.disk = str(path), Disk()
        self.files: dict[str, DirectFile] = {self.path: self.disk.open(self.path, 512)}
        self.memory = HostMemory(len(CONTENT))
        self.reader = Reader(self.files, self.memory, workers)

    def load(self, *places: int) -> tuple[Load, list[Job]]:
        """Return a load of the parts at these places of the file, and its jobs."""
        load = Load(ExpertKey(0, places[0]), 0, [PART] * len(places))
        jobs = [
            Job(Extent(self.path, place * PART, PART), place * PART, load, part)
            for part, place in enumerate(places)
        ]
        return load, jobs

    def submit(self, *places: int) -> Load:
        load, jobs = self.load(*places)
        self.reader.submit(jobs)
        return load

    def begun(self) -> list[int]:
        """Return the places of the reads so far, in order."""
        return [offset // PART for _, offset in self.disk.began]

    def arrived(self, place: int) -> bool:
        return self.memory.view[place * PART :][:PART] == CONTENT[place * PART :][:PART]

    def close(self) -> None:
        self.disk.resume()
        self.reader.close()
        self.files[self.path].close()
        self.disk.close()
        self.memory.close()


@pytest.fixture
def make_rig(tmp_path: Path) -> Iterator[Callable[[int], Rig]]:
    rigs: list[Rig] = []

    def make(workers: int) -> Rig:
        rigs.append(Rig(tmp_path / f"weights-{len(rigs)}", workers))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()


@pytest.fixture
def rig(make_rig: Callable[[int], Rig]) -> Rig:
    """Return a rig with one worker, so that the order of its reads is the order of its queues."""
    return make_rig(1)


def in_thread(action: Callable[[], object]) -> Callable[[], object]:
    """Start an action; return a function that waits for its result, or raises its error."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(action())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result() -> object:
        thread.join(PATIENCE_SECONDS)
        assert results, "it hangs"
        if isinstance(results[0], Exception):
            raise results[0]
        return results[0]

    return result


def test_parts_arrive_one_by_one(rig: Rig) -> None:
    rig.disk.hold()
    load = rig.submit(3, 5)
    assert (load.ready(0), load.ready(1), load.n_remaining) == (False, False, 2)
    rig.disk.let(1)
    load.wait(0)
    assert rig.arrived(3)
    assert (load.ready(0), load.ready(1), load.n_remaining) == (True, False, 1)
    rig.disk.let(1)
    load.wait(1)
    assert rig.arrived(5)
    assert load.n_remaining == 0


def test_a_part_may_be_waited_for_many_times(rig: Rig) -> None:
    load = rig.submit(3)
    for _ in range(3):
        load.wait(0)
        load.drain()


def test_reads_begin_in_the_order_of_submission(rig: Rig) -> None:
    rig.disk.hold()
    loads = [rig.submit(9), rig.submit(2, 7), rig.submit(1)]
    rig.disk.resume()
    for load in loads:
        load.drain()
    assert rig.begun() == [9, 2, 7, 1]


def test_reads_run_side_by_side(make_rig: Callable[[int], Rig]) -> None:
    rig = make_rig(3)
    rig.disk.hold()
    load = rig.submit(1, 2, 3, 4)
    rig.disk.wait_for_reads(3)
    assert sorted(rig.begun()) == [1, 2, 3]
    rig.disk.resume()
    load.drain()


def test_an_error_reaches_the_thread_that_waits(rig: Rig) -> None:
    rig.disk.faults[rig.path, 5 * PART + 7] = errno.EIO
    load = rig.submit(3, 5)
    with pytest.raises(ExpertReadError) as caught:
        load.wait(1)
    error = caught.value
    assert (error.path, error.offset, error.nbytes) == (rig.path, 5 * PART, PART)
    assert error.errno == errno.EIO
    load.drain()
    assert load.error is error
    assert rig.arrived(3)


def test_a_file_that_ends_early_reaches_the_thread_that_waits(rig: Rig) -> None:
    rig.disk.faults[rig.path, 5 * PART + 512] = 0
    load = rig.submit(5)
    with pytest.raises(ExpertReadError) as caught:
        load.wait(0)
    assert caught.value.errno == 0


def test_the_worker_survives_an_error(rig: Rig) -> None:
    rig.disk.faults[rig.path, 5 * PART] = errno.EIO
    rig.submit(5).drain()
    rig.submit(6).wait(0)
    assert rig.arrived(6)


def test_close_ends_what_has_begun_and_fails_the_rest(rig: Rig) -> None:
    rig.disk.hold()
    begun, queued, last = rig.submit(0), rig.submit(1), rig.submit(2)
    rig.disk.wait_for_reads(1)
    waiter = in_thread(lambda: queued.wait(0))
    closing = in_thread(rig.reader.close)
    with pytest.raises(ExpertReadError) as caught:
        waiter()
    assert caught.value.errno == errno.ECANCELED
    assert begun.n_remaining == 1
    rig.disk.resume()
    closing()
    begun.wait(0)
    assert rig.arrived(0)
    assert last.error is not None
    assert rig.begun() == [0]


def test_close_ends_the_threads_and_may_be_called_twice(make_rig: Callable[[int], Rig]) -> None:
    before = threading.active_count()
    rig = make_rig(4)
    assert threading.active_count() == before + 4
    rig.reader.close()
    rig.reader.close()
    assert threading.active_count() == before


def test_a_closed_reader_refuses_work(rig: Rig) -> None:
    rig.reader.close()
    with pytest.raises(RuntimeError, match="closed"):
        rig.submit(1)


@pytest.mark.parametrize("lead", [0, 32, 511])
@pytest.mark.parametrize("nbytes", [4 * MIB, 4 * MIB + 1, 9 * MIB + 5, 12 * MIB])
@pytest.mark.parametrize("block", [1, 512, 4096])
def test_long_parts_are_cut_on_blocks(nbytes: int, lead: int, block: int) -> None:
    load = Load(ExpertKey(0, 0), 0, [nbytes])
    offset, start = 8192 + lead, 4096 + lead
    pieces = split(Job(Extent("file", offset, nbytes), start, load, 0), block)
    position = 0
    for piece in pieces:
        assert piece.extent.offset - offset == piece.start - start == position
        assert 0 < piece.extent.nbytes <= reader_module.PIECE_NBYTES
        assert position == 0 or piece.extent.offset % block == 0
        position += piece.extent.nbytes
    assert position == nbytes
    assert len(pieces) <= nbytes // reader_module.PIECE_NBYTES + 2


def test_a_part_that_is_moved_stays_whole() -> None:
    load = Load(ExpertKey(0, 0), 0, [9 * MIB])
    job = Job(Extent("file", 8192 + 32, 9 * MIB), 4096, load, 0)
    assert split(job, 512) == [job]


def test_a_part_in_pieces_is_ready_with_its_last_piece(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "PIECE_NBYTES", PART)
    load = Load(ExpertKey(0, 0), 0, [3 * PART + 100])
    rig.disk.hold()
    rig.reader.submit([Job(Extent(rig.path, 32, 3 * PART + 100), 512 + 32, load, 0)])
    assert load.n_remaining == 4
    rig.disk.let(3)
    rig.disk.wait_for_reads(4)
    assert not load.ready(0)
    rig.disk.let(1)
    load.wait(0)
    assert rig.memory.view[544:][: 3 * PART + 100] == CONTENT[32:][: 3 * PART + 100]


def test_a_thread_that_does_not_start_ends_the_others(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_before, start = threading.active_count(), threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.endswith("-2"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="new thread"):
        Reader(rig.files, rig.memory, 4)
    assert threading.active_count() == n_before
