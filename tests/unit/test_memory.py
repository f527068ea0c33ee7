"""Anonymous memory: aligned, prefaulted once, given back."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import psutil
import pytest

from localmoe.cache.memory import HUGE_PAGE_NBYTES, HostMemory, round_up
from localmoe.errors import BudgetError

MIB = 1 << 20


@pytest.fixture
def memory() -> Iterator[HostMemory]:
    made = HostMemory(32 * MIB + 5)
    yield made
    made.close()


def rss() -> int:
    return int(psutil.Process().memory_info().rss)


@pytest.mark.parametrize(
    ("value", "step", "wanted"), [(0, 4, 0), (1, 4, 4), (4, 4, 4), (5, 4, 8), (7, 1, 7)]
)
def test_round_up(value: int, step: int, wanted: int) -> None:
    assert round_up(value, step) == wanted


def test_it_starts_on_a_huge_page_and_the_view_is_that_address(memory: HostMemory) -> None:
    assert memory.address % HUGE_PAGE_NBYTES == 0
    assert len(memory.view) == memory.nbytes == 32 * MIB + 5
    memory.view[3:8] = b"hello"
    assert ctypes.string_at(memory.address + 3, 5) == b"hello"


def test_prefault_takes_the_memory_at_once_and_counts_it(memory: HostMemory) -> None:
    before, steps = rss(), list[int]()
    memory.prefault(on_bytes=steps.append)
    assert rss() - before >= 24 * MIB
    assert sum(steps) == memory.nbytes


def test_prefault_works_on_kernels_that_cannot_populate(
    memory: HostMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("localmoe.cache.memory._advise", lambda *_: False)
    before = rss()
    memory.prefault()
    assert rss() - before >= 24 * MIB


def test_prefault_of_a_range_leaves_the_rest_alone(memory: HostMemory) -> None:
    before = rss()
    memory.prefault(8 * MIB, 16 * MIB)
    assert 6 * MIB <= rss() - before <= 14 * MIB


def test_the_guard_reads_as_zeros_and_takes_no_memory() -> None:
    before = rss()
    memory = HostMemory(4096, guard_nbytes=256 * MIB)
    memory.prefault()
    assert ctypes.string_at(memory.address + 4096, 4 * MIB) == bytes(4 * MIB)
    assert rss() - before < 32 * MIB
    memory.close()


def test_close_gives_the_memory_back_and_may_be_called_twice() -> None:
    before = rss()
    memory = HostMemory(64 * MIB)
    memory.prefault()
    assert rss() - before >= 48 * MIB
    memory.close()
    memory.close()
    assert rss() - before < 32 * MIB


def test_a_slice_in_use_keeps_it_from_closing(memory: HostMemory) -> None:
    with memory.view[:10], pytest.raises(BufferError):
        memory.close()


def test_address_space_that_cannot_be_had_is_an_error_of_ours() -> None:
    with pytest.raises(BudgetError, match=r"could not map .* bytes"):
        HostMemory(1 << 60)


def test_released_huge_pages_take_no_memory_and_read_as_zeros(memory: HostMemory) -> None:
    memory.prefault()
    memory.view[4 * MIB - 1], memory.view[4 * MIB], memory.view[12 * MIB] = 1, 2, 3
    before = rss()
    memory.release(3 * MIB, 12 * MIB + 4096)
    assert 7 * MIB <= before - rss() <= 9 * MIB
    assert [memory.view[p * MIB] for p in (4, 12)] == [0, 3]
    assert memory.view[4 * MIB - 1] == 1


def test_less_than_a_huge_page_is_kept(memory: HostMemory) -> None:
    memory.view[2 * MIB] = 7
    memory.release(2 * MIB, 4 * MIB - 1)
    assert memory.view[2 * MIB] == 7


def test_a_system_that_keeps_released_memory_breaks_the_budget(
    memory: HostMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("localmoe.cache.memory._advise", lambda *_: False)
    with pytest.raises(BudgetError, match="4194304 bytes"):
        memory.release(0, 4 * MIB)
