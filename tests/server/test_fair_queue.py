"""Turns: one of each client, whatever each asks for."""

from __future__ import annotations

import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localmoe.server.fair_queue import FairQueue, QueueFullError


def taken(queue: FairQueue[str]) -> list[str]:
    found = []
    while len(queue):
        item = queue.get()
        assert item is not None
        found.append(item)
    return found


def test_clients_take_turns_however_much_one_of_them_asks_for() -> None:
    queue: FairQueue[str] = FairQueue(10)
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        queue.put(item[0], item)
    assert taken(queue) == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_past_the_bound_nothing_more_may_wait() -> None:
    queue: FairQueue[str] = FairQueue(2)
    queue.put("a", "1")
    queue.put("b", "2")
    with pytest.raises(QueueFullError):
        queue.put("c", "3")
    assert queue.remove("a", "1")
    assert not queue.remove("a", "1")
    queue.put("c", "3")
    assert taken(queue) == ["2", "3"]


def test_what_is_urged_comes_first_and_is_not_counted() -> None:
    queue: FairQueue[str] = FairQueue(1)
    queue.put("a", "1")
    queue.urge("now")
    assert len(queue) == 1
    assert [queue.get(), queue.get()] == ["now", "1"]
    assert queue.urgent() is None


def test_closing_wakes_who_waits_and_returns_what_waited() -> None:
    queue: FairQueue[str] = FairQueue(3)
    got: list[str | None] = []
    thread = threading.Thread(target=lambda: got.append(queue.get()))
    thread.start()
    assert queue.close() == []
    thread.join(10)
    assert got == [None]
    with pytest.raises(QueueFullError):
        queue.put("a", "1")
    other: FairQueue[str] = FairQueue(3)
    other.put("a", "1")
    assert other.close() == ["1"]
    assert other.get() is None


@given(st.lists(st.sampled_from("abc"), max_size=30))
def test_nobody_waits_for_more_than_one_turn_of_each_other_client(clients: list[str]) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue(100)
    for number, client in enumerate(clients):
        queue.put(client, (client, number))
    order = []
    while len(queue):
        item = queue.get()
        assert item is not None
        order.append(item)
    assert sorted(order) == sorted((c, n) for n, c in enumerate(clients))
    for client in set(clients):
        own = [number for name, number in order if name == client]
        assert own == sorted(own)
    names = [name for name, _ in order]
    for client in set(names):
        places = [at for at, name in enumerate(names) if name == client]
        for first, second in pairwise(places):
            between = names[first + 1 : second]
            assert len(between) == len(set(between))
