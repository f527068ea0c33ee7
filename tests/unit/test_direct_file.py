"""Direct reads: every alignment, the end of the file, short reads, errors, refused O_DIRECT."""

from __future__ import annotations

import errno
import itertools
import os
import random
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from localmoe.cache.direct_file import DirectFile
from localmoe.cache.memory import HostMemory, round_up
from localmoe.errors import ExpertReadError, ModelNotFoundError
from storage import Disk

CONTENT = random.Random(1).randbytes(11 * 4096 + 777)
REMAINDERS = (0, 1, 511, 512, 513, 1024, 4095)
LENGTHS = (1, 511, 512, 513, 4095, 4096, 5000, 8192)
ROOM = 16 * 4096
FILL = 0xA5
Preadv = Callable[[int, Sequence[memoryview], int], int]


@pytest.fixture(params=["here", "tmpfs"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Yield a file on the file system of the tests, and one on tmpfs."""
    if request.param == "here":
        (tmp_path / "weights").write_bytes(CONTENT)
        yield str(tmp_path / "weights")
        return
    if not Path("/dev/shm").is_dir():
        pytest.skip("no tmpfs")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        (Path(directory) / "weights").write_bytes(CONTENT)
        yield str(Path(directory) / "weights")


@pytest.fixture
def memory() -> Iterator[HostMemory]:
    made = HostMemory(ROOM)
    yield made
    made.close()


@pytest.fixture
def disk() -> Iterator[Disk]:
    made = Disk()
    yield made
    made.close()


def refuse_direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make opening with O_DIRECT fail, as some file systems do."""
    real_open = os.open

    def refusing(path: str, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "O_DIRECT is refused here")
        return real_open(path, flags, *rest)

    monkeypatch.setattr(os, "open", refusing)


def short(longest: int) -> Preadv:
    """Return a preadv that never reads more than so many bytes."""
    return lambda fd, buffers, offset: min(longest, os.preadv(fd, buffers, offset))


def touchable(start: int, offset: int, nbytes: int, block: int) -> range:
    """Return what `read` may write according to its contract."""
    if start % block == offset % block:
        return range(start - start % block, round_up(start + nbytes, block))
    return range(start, start + round_up(nbytes, block) + block)


def check(file: DirectFile, memory: HostMemory, start: int, offset: int, nbytes: int) -> None:
    """Read a part, and see that it came and that nothing outside of its room was written."""
    memory.view[:] = bytes([FILL]) * ROOM
    file.read(memory, start, offset, nbytes)
    assert memory.view[start : start + nbytes] == CONTENT[offset : offset + nbytes]
    room = touchable(start, offset, nbytes, file.block)
    assert memory.view[: room.start] == bytes([FILL]) * room.start
    assert memory.view[room.stop :] == bytes([FILL]) * (ROOM - room.stop)


def alignments(block: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, offset, nbytes) for every remainder that the contract allows."""
    for offset, nbytes, start in itertools.product(REMAINDERS, LENGTHS, REMAINDERS):
        if start % block in (0, offset % block):
            yield 4096 + start, 4096 + offset, nbytes


def test_every_alignment_on_the_file_system_itself(path: str, memory: HostMemory) -> None:
    file = DirectFile(path)
    for start, offset, nbytes in alignments(file.block):
        check(file, memory, start, offset, nbytes)
    file.close()


@pytest.mark.parametrize("block", [1, 512, 4096])
def test_every_alignment_for_each_block(
    path: str, memory: HostMemory, disk: Disk, block: int
) -> None:
    file = disk.open(path, block)
    for start, offset, nbytes in alignments(block):
        check(file, memory, start, offset, nbytes)
    file.close()


@pytest.mark.parametrize("nbytes", [1, 776, 777, 778, 4096, 4873, 9000, len(CONTENT)])
def test_a_part_at_the_very_end(path: str, memory: HostMemory, nbytes: int) -> None:
    file = DirectFile(path)
    offset = len(CONTENT) - nbytes
    for start in {4096, 4096 + offset % file.block}:
        check(file, memory, start, offset, nbytes)
    file.close()


@pytest.mark.parametrize("nbytes", [1, 512, 2000])
def test_a_part_that_ends_behind_the_file_is_an_error(
    path: str, memory: HostMemory, nbytes: int
) -> None:
    file = DirectFile(path)
    offset = len(CONTENT) - nbytes + 1
    with pytest.raises(ExpertReadError, match="the file ended before") as caught:
        file.read(memory, 4096, offset, nbytes)
    assert (caught.value.path, caught.value.offset) == (path, offset)
    assert (caught.value.nbytes, caught.value.errno) == (nbytes, 0)
    file.close()


def test_a_file_that_shrank_since_it_was_opened(path: str, memory: HostMemory) -> None:
    file = DirectFile(path)
    os.truncate(path, 5000)
    check(file, memory, 4096, 4096, 904)
    with pytest.raises(ExpertReadError) as caught:
        file.read(memory, 4096, 4096, 905)
    assert caught.value.errno == 0
    file.close()


@pytest.mark.parametrize("longest", [512, 1000, 4096, 5000])
def test_short_reads_are_continued(path: str, memory: HostMemory, longest: int) -> None:
    file = DirectFile(path, short(longest))
    for offset in (0, 1, 4096, 4097, 5001):
        check(file, memory, 4096, offset, 20_000)
        check(file, memory, 4096 + offset % file.block, offset, 20_000)
    file.close()


@pytest.mark.parametrize("longest", [0, 100])
def test_less_than_a_block_is_the_end_of_the_file(
    tmp_path: Path, memory: HostMemory, disk: Disk, longest: int
) -> None:
    (tmp_path / "weights").write_bytes(CONTENT)
    file = disk.open(str(tmp_path / "weights"), 512)
    disk.longest_read_nbytes = longest
    with pytest.raises(ExpertReadError) as caught:
        file.read(memory, 0, 0, 512)
    assert caught.value.errno == 0
    file.close()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENODEV, errno.EAGAIN])
def test_an_error_names_the_part_and_the_next_read_works(
    path: str, memory: HostMemory, disk: Disk, code: int
) -> None:
    file = disk.open(path, 512)
    disk.faults[path, 6000] = code
    with pytest.raises(ExpertReadError, match=os.strerror(code)) as caught:
        file.read(memory, 4096, 5001, 2000)
    error = caught.value
    assert (error.path, error.offset, error.nbytes, error.errno) == (path, 5001, 2000, code)
    disk.faults.clear()
    check(file, memory, 4096, 5001, 2000)
    file.close()


def test_an_error_that_is_kept_does_not_keep_the_memory(path: str, disk: Disk) -> None:
    memory, file = HostMemory(ROOM), disk.open(path, 512)
    disk.faults[path, 6000] = errno.EIO
    with pytest.raises(ExpertReadError) as caught:
        file.read(memory, 4096, 5001, 2000)
    memory.close()
    assert caught.value.__traceback__ is not None
    file.close()


def test_buffered_where_direct_reads_are_refused(
    path: str, memory: HostMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_direct(monkeypatch)
    file = DirectFile(path)
    assert (file.block, file.direct) == (1, False)
    for start, offset, nbytes in alignments(1):
        check(file, memory, start, offset, nbytes)
    file.close()


def test_buffered_where_no_direct_read_succeeds(
    path: str, memory: HostMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*_: object) -> int:
        raise OSError(errno.EINVAL, "not this way")

    before = set(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", refusing)
        file = DirectFile(path)
    assert file.block == 1
    check(file, memory, 4099, 4097, 5000)
    file.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_buffered_reads_drop_every_page_they_touched(
    path: str, memory: HostMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped: list[tuple[int, int]] = []
    refuse_direct(monkeypatch)
    monkeypatch.setattr(
        os, "posix_fadvise", lambda fd, offset, nbytes, advice: dropped.append((offset, nbytes))
    )
    file = DirectFile(path)
    file.read(memory, 0, 4097, 4096)
    assert dropped == [(4096, 8192)]
    file.close()


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="cannot open .*missing"):
        DirectFile(str(tmp_path / "missing"))


def test_close_frees_the_descriptor_and_may_be_called_twice(path: str, memory: HostMemory) -> None:
    before = set(os.listdir("/proc/self/fd"))
    file = DirectFile(path)
    file.close()
    file.close()
    assert set(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ExpertReadError) as caught:
        file.read(memory, 0, 0, 1)
    assert caught.value.errno == errno.EBADF


def test_several_threads_read_one_file(path: str) -> None:
    file = DirectFile(path)
    wrong: list[tuple[int, int]] = []

    def work(seed: int) -> None:
        memory, source = HostMemory(ROOM), random.Random(seed)
        for _ in range(200):
            offset = source.randrange(len(CONTENT) - 1)
            nbytes = source.randint(1, len(CONTENT) - offset)
            file.read(memory, 4096, offset, nbytes)
            if memory.view[4096 : 4096 + nbytes] != CONTENT[offset : offset + nbytes]:
                wrong.append((offset, nbytes))
        memory.close()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    file.close()
