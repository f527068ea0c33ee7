"""When a thread fewer computes: on clocks that a test turns."""

from __future__ import annotations

import time

from localmoe.backends.llama.sharing import CoreSharing, busy_seconds


class Machine:
    """Cores with our own work and that of others, in shares of a core."""

    def __init__(self, n_threads: int = 2, n_cores: int = 2, *, fixed: bool = False) -> None:
        self.now = self.busy = self.own = 0.0
        self.sharing = CoreSharing(
            n_threads,
            n_cores,
            fixed=fixed,
            busy=lambda: self.busy,
            own=lambda: self.own,
            clock=lambda: self.now,
        )

    def go_on(self, seconds: float, ours: float, others: float) -> bool:
        self.now += seconds
        self.own += seconds * ours
        self.busy += seconds * (ours + others)
        return self.sharing.look()


def test_alone_all_threads_compute() -> None:
    machine = Machine()
    assert not machine.go_on(1.0, 2.0, 0.05)
    assert (machine.sharing.n_threads, machine.sharing.alone) == (2, True)


def test_beside_a_busy_process_one_thread_fewer_computes_until_it_is_gone() -> None:
    machine = Machine()
    assert machine.go_on(1.0, 1.3, 0.65)
    assert (machine.sharing.n_threads, machine.sharing.alone) == (1, False)
    assert not machine.go_on(1.0, 1.0, 1.0)
    assert not machine.go_on(1.0, 1.0, 0.0)  # once is a pause between two bursts
    assert machine.go_on(1.0, 1.0, 0.0)
    assert (machine.sharing.n_threads, machine.sharing.alone) == (2, True)


def test_a_little_work_of_others_changes_nothing_either_way() -> None:
    machine = Machine()
    assert not machine.go_on(1.0, 1.7, 0.25)
    machine.go_on(1.0, 1.3, 0.65)
    for _ in range(4):
        assert not machine.go_on(1.0, 1.0, 0.25)
    assert machine.sharing.n_threads == 1


def test_short_looks_are_put_off_not_lost() -> None:
    machine = Machine()
    assert not machine.go_on(0.1, 1.3, 0.7)
    assert not machine.go_on(0.1, 1.3, 0.7)
    assert machine.go_on(0.15, 1.3, 0.7)


def test_several_busy_neighbours_cost_as_many_threads_but_the_last() -> None:
    machine = Machine(n_threads=8, n_cores=8)
    machine.go_on(1.0, 5.0, 3.1)
    assert machine.sharing.n_threads == 5
    machine.go_on(1.0, 0.5, 9.0)
    assert machine.sharing.n_threads == 1


def test_cores_that_nobody_computes_on_are_there_for_others() -> None:
    machine = Machine(n_threads=4, n_cores=8)
    machine.go_on(1.0, 4.0, 3.0)
    assert (machine.sharing.n_threads, machine.sharing.alone) == (4, False)


def test_a_number_that_was_asked_for_stays() -> None:
    machine = Machine(fixed=True)
    assert machine.go_on(1.0, 1.3, 0.65)
    assert (machine.sharing.n_threads, machine.sharing.alone) == (2, False)


def test_the_system_counts_what_this_process_does() -> None:
    before, own = busy_seconds(), time.process_time()
    while time.process_time() - own < 0.2:
        pass
    assert busy_seconds() - before > 0.1
