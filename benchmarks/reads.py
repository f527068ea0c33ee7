"""Claim: Python's reader threads are as fast as the device; what they cost is waking up.

    python benchmarks/reads.py [--model FILE.gguf] [--rounds 2]

Random direct reads of expert-sized pieces into huge pages: with several numbers of threads, lengths
and ways to schedule the readers beside computing threads, and from a file with a mirror (a second
name of the same file: one drive). Then the way of one read through a worker: from its submission to
its begin, and from its last byte to whoever waits. Why the reader is as it is: docs/decisions/0008.
"""

from __future__ import annotations

import hashlib
import os
import random
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

from manifest import SCRATCH, Answer, entry_state, options, record
from synthetic import Shape, synthetic_model

from localmoe.cache.direct_file import DirectFile
from localmoe.cache.memory import HostMemory
from localmoe.cache.mirrors import MirroredFile

PART_NBYTES, SECONDS, SAMPLES = 884736, 0.6, 250
MEMORY = HostMemory(64 << 20)
SCHEDULING: dict[str, Callable[[int], None]] = {
    "as it comes": lambda tid: None,
    "SCHED_BATCH": lambda tid: os.sched_setscheduler(tid, os.SCHED_BATCH, os.sched_param(0)),
    "nice 5": lambda tid: os.setpriority(os.PRIO_PROCESS, tid, 5),
    "one core": lambda tid: os.sched_setaffinity(tid, {max(os.sched_getaffinity(0))}),
}


def compute(stop: threading.Event, counts: list[int], index: int) -> None:
    """Keep a core busy without the interpreter lock; count what was done."""
    data = bytes(1 << 20)
    while not stop.is_set():
        hashlib.blake2b(data).digest()
        counts[index] += 1


def read(file: DirectFile, start: int, nbytes: int, rng: random.Random) -> None:
    last = os.path.getsize(file.path) - nbytes
    file.read(MEMORY, start, rng.randrange(last // 4096) * 4096, nbytes)


def bandwidth(
    file: DirectFile, *, workers: int = 4, nbytes: int = PART_NBYTES, how: str = "", busy: int = 0
) -> Answer:
    """Read for a while; return GB/s, processor time, and what `busy` computing threads did."""
    stop, done, computed = threading.Event(), [0] * workers, [0] * busy

    def work(index: int) -> None:
        if how:
            SCHEDULING[how](threading.get_native_id())
        rng = random.Random()
        while not stop.is_set():
            read(file, index << 22, nbytes, rng)
            done[index] += nbytes

    threads = [threading.Thread(target=work, args=(i,)) for i in range(workers)]
    threads += [threading.Thread(target=compute, args=(stop, computed, i)) for i in range(busy)]
    began, cpu = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    time.sleep(SECONDS)
    stop.set()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    return {
        "gigabytes_per_second": sum(done) / seconds / 1e9,
        "cpu_seconds_per_gigabyte": (time.process_time() - cpu) / (sum(done) / 1e9),
        "computed_per_second": sum(computed) / seconds,
    }


def waking(file: DirectFile, busy: int) -> Answer:
    """Time single reads through a worker thread; microseconds: median, 95th of 100."""
    stop, computed = threading.Event(), [0] * busy
    others = [threading.Thread(target=compute, args=(stop, computed, i)) for i in range(busy)]
    queue: SimpleQueue[threading.Lock | None] = SimpleQueue()
    times, rng = [0.0, 0.0], random.Random(0)

    def work() -> None:
        while lock := queue.get():
            times[0] = time.perf_counter()
            read(file, 0, PART_NBYTES, rng)
            times[1] = time.perf_counter()
            lock.release()

    worker = threading.Thread(target=work)
    for thread in (*others, worker):
        thread.start()
    submit, wake = [], []
    for _ in range(SAMPLES):
        lock = threading.Lock()
        lock.acquire()
        began = time.perf_counter()
        queue.put(lock)
        lock.acquire()
        submit.append(times[0] - began)
        wake.append(time.perf_counter() - times[1])
    stop.set()
    queue.put(None)
    for thread in (*others, worker):
        thread.join()
    return {
        name: [1e6 * statistics.median(values), 1e6 * statistics.quantiles(values, n=20)[-1]]
        for name, values in (("submit_microseconds", submit), ("wake_microseconds", wake))
    }


def main() -> None:
    parser = options(__doc__, rounds=2)
    parser.add_argument("--model", type=Path)
    given = parser.parse_args()
    path = str(given.model or synthetic_model(SCRATCH / "synthetic.gguf", Shape()))
    entry = entry_state()
    MEMORY.prefault()
    file, mirrored = DirectFile(path), MirroredFile([DirectFile(path), DirectFile(path)])
    found: dict[str, list[Answer]] = {}
    for _ in range(given.rounds):
        for workers in (1, 2, 4, 8):
            answer = {"workers": workers, **bandwidth(file, workers=workers)}
            found.setdefault("workers", []).append(answer)
        for nbytes in (256 << 10, PART_NBYTES, 2 << 20, 4 << 20):
            answer = {"nbytes": nbytes, **bandwidth(file, nbytes=nbytes)}
            found.setdefault("lengths", []).append(answer)
        for name, one in (("one file", file), ("with a mirror", mirrored)):
            found.setdefault("mirror", []).append({"file": name, **bandwidth(one)})
        for how in SCHEDULING:
            answer = {"readers": how, **bandwidth(file, how=how, busy=2)}
            found.setdefault("scheduling", []).append(answer)
        for busy in (0, 1, 2):
            found.setdefault("waking", []).append({"computing": busy, **waking(file, busy)})
    record(given.data, "reads", entry, {"rounds": given.rounds, **found})
    for name, answers in found.items():
        for answer in answers:
            print(name, answer)


if __name__ == "__main__":
    main()
