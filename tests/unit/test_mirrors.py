"""Copies of a file in two folders: shared reads, a copy that fails, and what is no copy."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from localmoe.backends.llama.source import open_source
from localmoe.cache.direct_file import DirectFile
from localmoe.cache.memory import HostMemory
from localmoe.cache.mirrors import MirroredFile, check_copy, mirror_paths
from localmoe.errors import ExpertReadError, SettingsError

CONTENT = os.urandom(256 << 10)
PIECE_NBYTES = 4096


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    made = [tmp_path / "one", tmp_path / "two"]
    for folder in made:
        folder.mkdir()
        (folder / "model").write_bytes(CONTENT)
    return made


@pytest.fixture
def memory() -> Iterator[HostMemory]:
    made = HostMemory(len(CONTENT))
    yield made
    made.close()


class Counted:
    """preadv that counts, and fails once it is told to."""

    def __init__(self) -> None:
        self.reads, self.fails = 0, False

    def __call__(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        self.reads += 1
        if self.fails:
            raise OSError(errno.EIO, "Input/output error")
        return os.preadv(fd, buffers, offset)


def mirrored(folders: list[Path]) -> tuple[MirroredFile, list[Counted]]:
    counts = [Counted() for _ in folders]
    files = [
        DirectFile(str(folder / "model"), count)
        for folder, count in zip(folders, counts, strict=True)
    ]
    return MirroredFile(files), counts


def read_all(file: MirroredFile, memory: HostMemory) -> bytes:
    for offset in range(0, len(CONTENT), PIECE_NBYTES):
        file.read(memory, offset, offset, PIECE_NBYTES)
    return bytes(memory.view)


def test_idle_copies_take_turns(folders: list[Path], memory: HostMemory) -> None:
    file, counts = mirrored(folders)
    assert read_all(file, memory) == CONTENT
    assert [count.reads for count in counts] == [32, 32]
    assert file.path == str(folders[0] / "model")
    file.close()
    file.close()


def test_a_copy_that_is_busy_gets_no_more(folders: list[Path], memory: HostMemory) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        begun.set()
        assert go_on.wait(10)
        return os.preadv(fd, buffers, offset)

    other = Counted()
    file = MirroredFile(
        [DirectFile(str(folders[0] / "model"), slow), DirectFile(str(folders[1] / "model"), other)]
    )
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(file.read, memory, 0, 0, PIECE_NBYTES)
        assert begun.wait(10)
        for offset in range(PIECE_NBYTES, 5 * PIECE_NBYTES, PIECE_NBYTES):
            file.read(memory, offset, offset, PIECE_NBYTES)
        go_on.set()
        first.result()
    assert other.reads == 4
    assert bytes(memory.view[: 5 * PIECE_NBYTES]) == CONTENT[: 5 * PIECE_NBYTES]
    file.close()


def test_a_copy_that_fails_is_dropped_with_one_warning(
    folders: list[Path], memory: HostMemory, caplog: pytest.LogCaptureFixture
) -> None:
    file, counts = mirrored(folders)
    counts[0].fails = True
    with caplog.at_level(logging.WARNING):
        assert read_all(file, memory) == CONTENT
    assert [record.getMessage() for record in caplog.records] == [
        f"{folders[0] / 'model'} is not read any more: {caplog.records[0].args[1]}"  # type: ignore[index]
    ]
    assert (counts[0].reads, counts[1].reads) == (1, 64)
    file.close()


def test_the_last_copy_is_not_dropped(folders: list[Path], memory: HostMemory) -> None:
    file, counts = mirrored(folders)
    counts[0].fails = counts[1].fails = True
    with pytest.raises(ExpertReadError):
        file.read(memory, 0, 0, PIECE_NBYTES)
    counts[1].fails = False
    assert read_all(file, memory) == CONTENT
    file.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content + b"x", "bytes, not"),
        (lambda content: bytes([content[0] ^ 1]) + content[1:], "differ in the 100 bytes from 0"),
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "they differ"),
        (lambda content: bytes(len(content)), "they differ"),
    ],
)
def test_what_is_no_copy(folders: list[Path], change: object, message: str) -> None:
    original, copy = (str(folder / "model") for folder in folders)
    check_copy(original, copy, 100)
    Path(copy).write_bytes(change(CONTENT))  # type: ignore[operator]
    with pytest.raises(SettingsError, match=message):
        check_copy(original, copy, 100)


def test_a_mirror_that_is_not_there(folders: list[Path]) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        check_copy(str(folders[0] / "model"), str(folders[1] / "other"), 100)


def test_where_copies_lie(tmp_path: Path) -> None:
    assert mirror_paths("/b/copy.gguf", ["/a/m.gguf"]) == ["/b/copy.gguf"]
    assert mirror_paths(str(tmp_path), ["/a/m.gguf"]) == [str(tmp_path / "m.gguf")]
    shards = ["/a/m-00001-of-00002.gguf", "/a/m-00002-of-00002.gguf"]
    wanted = ["/b/m-00001-of-00002.gguf", "/b/m-00002-of-00002.gguf"]
    assert mirror_paths("/b/m-00001-of-00002.gguf", shards) == wanted


def test_a_source_with_mirrors(zoo_model: object, tmp_path: Path) -> None:
    path: Path = zoo_model("qwen3moe")  # type: ignore[operator]
    copy = Path(shutil.copy(path, tmp_path / "copy.gguf"))
    source = open_source(path, None, [str(copy)])
    assert [type(file) for file in source.files.values()] == [MirroredFile]
    source.close()
    copy.write_bytes(b"GGUF")
    with pytest.raises(SettingsError, match="no copy"):
        open_source(path, None, [str(copy)])
