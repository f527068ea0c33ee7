"""Experts that are missed, read as the engine reads them."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from localmoe.bench.expert_reads import MissedExperts, measure_misses
from localmoe.cache.direct_file import DirectFile
from localmoe.cache.memory import HostMemory
from localmoe.cache.reader import Load, Reader
from localmoe.errors import ExpertReadError
from localmoe.weights.catalog import ExpertKey

PARTS = (20_000, 3_000, 70_000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "random"
    made.write_bytes(os.urandom(1 << 20))
    return made


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("n_experts", [1, 3, 8])
def test_experts_come_to_lie_in_memory_whole(path: Path, n_experts: int, apart: bool) -> None:
    content, loads = path.read_bytes(), [Load(ExpertKey(0, 0), 0, PARTS)] * n_experts
    with (
        closing(HostMemory(MissedExperts.room_nbytes(PARTS) * n_experts)) as memory,
        closing(DirectFile(str(path))) as file,
        closing(Reader({file.path: file}, memory, 4, 4)) as reader,
    ):
        assert MissedExperts(file, reader, PARTS).read(n_experts, apart=apart) > 0
        for (_, offset, nbytes), start, *_ in MissedExperts(file, reader, PARTS)._jobs(
            loads, apart
        ):
            assert memory.view[start : start + nbytes] == content[offset : offset + nbytes]


def test_rates_by_size_and_number(path: Path) -> None:
    points, _ = measure_misses(path, 0.001, sizes=(1 << 14, 1 << 22), at_once=(1, 4))
    assert [(point.nbytes, point.depth) for point in points] == [(1 << 14, 1), (1 << 14, 4)]
    assert all(point.bytes_per_second > 0 for point in points)


def test_a_file_that_ends_early_is_told(path: Path) -> None:
    with (
        closing(HostMemory(1 << 20)) as memory,
        closing(DirectFile(str(path))) as file,
        closing(Reader({file.path: file}, memory, 4)) as reader,
    ):
        missed = MissedExperts(file, reader, PARTS)
        os.truncate(path, 4096)
        with pytest.raises(ExpertReadError):
            missed.read(2)
