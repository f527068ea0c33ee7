"""Who has the memory before each step: slots, or the compute buffer."""

from __future__ import annotations

import ctypes

import pytest

from localmoe.backends.llama import lending
from localmoe.backends.llama.bindings import Tensor, buffer_free, buffer_from_pointer
from localmoe.backends.llama.lending import Lender, buffer_of
from localmoe.planning.loans import Loan
from storage import CacheRig, MakeCacheRig

LOANS = (Loan(4, (8, 4)), Loan(16, (6, 4)), Loan(64, (3, 2)))
BUFFER = range(1 << 30, 3 << 30)


@pytest.fixture
def rig(make_cache_rig: MakeCacheRig) -> CacheRig:
    return make_cache_rig(8, 4)


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> list[range]:
    areas: list[range] = []
    monkeypatch.setattr(
        lending, "release_pages", lambda start, stop: areas.append(range(start, stop))
    )
    return areas


def test_slots_are_lent_while_steps_are_long(rig: CacheRig, released: list[range]) -> None:
    lender = Lender(rig.cache, LOANS)
    found = []
    for tokens in (1, 64, 100, 17, 16, 5, 4, 2):
        lender.prepare(tokens, BUFFER)
        found.append((rig.pool.limits, len(released)))
    assert found == [
        ([8, 4], 0),
        *[([3, 2], 0)] * 3,
        *[([6, 4], 1)] * 2,
        *[([8, 4], 2)] * 2,
    ]
    assert set(released) == {BUFFER}


def test_slots_wait_while_nobody_knows_where_was_computed(
    rig: CacheRig, released: list[range]
) -> None:
    lender = Lender(rig.cache, LOANS)
    lender.prepare(64, None)
    lender.prepare(1, None)
    assert (rig.pool.limits, released) == ([3, 2], [])
    lender.prepare(1, BUFFER)
    assert (rig.pool.limits, released) == ([8, 4], [BUFFER])


def test_without_loans_nothing_moves(rig: CacheRig, released: list[range]) -> None:
    lender = Lender(rig.cache, ())
    for tokens in (64, 1):
        lender.prepare(tokens, BUFFER)
    assert (rig.pool.limits, released) == ([8, 4], [])


def test_the_buffer_of_a_node() -> None:
    room = ctypes.create_string_buffer(8192)
    start = (ctypes.addressof(room) + 63) // 64 * 64
    buffer = buffer_from_pointer(start, 4096)
    node = Tensor(buffer=buffer)
    assert buffer_of(ctypes.addressof(node)) == range(start, start + 4096)
    buffer_free(buffer)
    node.buffer = None
    assert buffer_of(ctypes.addressof(node)) is None
