"""Question: would one record per expert be read so much faster that a copy of a checkpoint pays?

    python benchmarks/expert_records.py [--rounds 40]

An expert of an MLX checkpoint in 4 bits is nine arrays in nine places: three matrices, each with
its scales and biases. For two models' shapes, and for 1 to 8 experts that are missed at once, the
same bytes are read from random places of one file by localmoe's own reader: as nine reads for each
expert, and as one record. Either as a drive takes them straight into a slot, or through buffers, as
for MLX's planes on Linux. All ways take turns.
"""

from __future__ import annotations

import statistics
from contextlib import closing
from pathlib import Path

from manifest import SCRATCH, Answer, entry_state, options, record
from synthetic import Shape, synthetic_model

from localmoe.bench.expert_reads import AT_ONCE, MissedExperts
from localmoe.cache.direct_file import DirectFile
from localmoe.cache.memory import HostMemory
from localmoe.cache.reader import Reader

GROUP, WORKERS = 64, 4
SHAPES = {"Qwen3-30B-A3B": (2048, 768), "GLM-4.5-Air": (4096, 1408)}
"""Width of the model, width of an expert."""
WAYS = {
    "nine reads": (False, False),
    "one record": (True, False),
    "nine reads, buffered": (False, True),
    "one record, buffered": (True, True),
}
"""Whether an expert is one piece, and whether its bytes pass through a buffer."""


def parts_of(model: int, inner: int) -> list[int]:
    """Return the bytes of an expert's arrays: 4 bits, and two numbers of 16 for each group."""
    scales = model * inner // GROUP * 2
    return [model * inner // 2, scales, scales] * 3


def measure(file: DirectFile, memory: HostMemory, rounds: int) -> list[Answer]:
    """Return every sample."""
    found: list[Answer] = []
    with closing(Reader({file.path: file}, memory, WORKERS, WORKERS)) as reader:
        ways = []
        for model, widths in SHAPES.items():
            parts = parts_of(*widths)
            for way, (is_one, buffered) in WAYS.items():
                missed = MissedExperts(file, reader, [sum(parts)] if is_one else parts)
                ways.append((model, way, missed, buffered))
        for _ in range(rounds):
            for n_experts in AT_ONCE:
                for model, way, missed, buffered in ways:
                    took = missed.read(n_experts, apart=buffered)
                    about = {"model": model, "experts": n_experts, "way": way}
                    found.append({**about, "seconds": took})
    return found


def table(found: list[Answer]) -> list[Answer]:
    """Return milliseconds of every case, and how much longer nine reads take than one."""
    rows = []
    for model in SHAPES:
        for n_experts in AT_ONCE:
            middle = {
                way: statistics.median(
                    one["seconds"]
                    for one in found
                    if (one["model"], one["experts"], one["way"]) == (model, n_experts, way)
                )
                for way in WAYS
            }
            rows.append(
                {
                    "model": model,
                    "experts": n_experts,
                    "milliseconds": {way: 1e3 * each for way, each in middle.items()},
                    "nine_over_one": middle["nine reads"] / middle["one record"],
                    "nine_over_one_buffered": middle["nine reads, buffered"]
                    / middle["one record, buffered"],
                }
            )
    return rows


def compare(path: Path, rounds: int) -> tuple[list[Answer], list[Answer]]:
    """Read experts out of any file that is larger than one; return the table and all samples."""
    largest = max(MissedExperts.room_nbytes(parts_of(*each)) for each in SHAPES.values())
    with closing(HostMemory(max(AT_ONCE) * largest)) as memory:
        memory.prefault()
        with closing(DirectFile(str(path))) as file:
            found = measure(file, memory, rounds)
    return table(found), found


def main() -> None:
    """Measure and record."""
    given = options(__doc__, rounds=40).parse_args()
    path = synthetic_model(SCRATCH / "synthetic.gguf", Shape())
    entry = entry_state()
    rows, found = compare(Path(path), given.rounds)
    for row in rows:
        print(
            f"{row['model']}, {row['experts']} at once: nine reads take "
            f"{row['nine_over_one']:.2f} times as long as one record, "
            f"{row['nine_over_one_buffered']:.2f} through buffers; {row['milliseconds']}"
        )
    sizes = {model: parts_of(*widths) for model, widths in SHAPES.items()}
    result = {"part_bytes": sizes, "table": rows, "samples": found}
    record(given.data, "expert-records", entry, result)


if __name__ == "__main__":
    main()
