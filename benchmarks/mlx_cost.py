"""Question: does a layer whose experts are all in slots cost the MLX engine under 0.4 ms of Python?

    python benchmarks/mlx_cost.py [--rounds 6] [--tiny]

60 layers so small that hardly anything is computed, against plain mlx-lm in the same process, token
by token in turn: with a slot less than there are experts, so that each layer has to ask which are
there, and with all of them in slots. What counts is the processor time of the thread that runs
Python, which includes what `mx.eval` does there. Then a checkpoint of 155 MB: what plain mlx-lm and
localmoe take and read when they load it and decode, each in a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from manifest import HERE, REPOSITORY, SCRATCH, Answer, entry_state, options, record
from mlx_checkpoint import SMALL, TINY, sized, write_checkpoint

from localmoe.bench.tokens import token_stream

COST = {**TINY, "num_hidden_layers": 60, "num_experts_per_tok": 4}
MEMORY_EXPERT_NBYTES = 150_000_000
WANTED_SECONDS = 0.4e-3
_IDLE_SECONDS = 60
_CLOCKS = {
    "thread_seconds": time.thread_time,
    "process_seconds": time.process_time,
    "wall_seconds": time.perf_counter,
}


def child(kind: str, request: Answer) -> Answer:
    """Run this file in a process of its own for one part of the measurement."""
    done = subprocess.run(
        [sys.executable, str(HERE / "mlx_cost.py"), "--child", kind],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    if done.returncode:
        raise SystemExit(f"{kind}: exit {done.returncode}: {done.stderr[-2000:]}")
    answer: Answer = json.loads(done.stdout.splitlines()[-1])
    return answer


def costs(request: Answer) -> Answer:
    """Decode the same tokens with both sides in turn; return what each token took."""
    from mlx_worker import Plain

    from localmoe.backends.mlx.load import load
    from localmoe.settings import Settings

    folder, count = Path(request["folder"]), request["tokens"]
    plain = Plain(folder)
    context = count * (request["rounds"] + 1)
    settings = Settings(slots=request["slots"], context_tokens=context, prefill_chunk_tokens=1)
    with load(folder, settings) as engine:
        wait_until_all_are_read(engine)
        stream = token_stream(count, plain.n_vocab)
        for token in stream:
            check_same(plain.decode([token]), engine.decode([token]))
        sides = {"mlx-lm": plain.decode, "localmoe": engine.decode}
        rounds, before = [], engine.stats()
        for _ in range(request["rounds"]):
            samples: dict[str, dict[str, list[float]]] = {
                side: {clock: [] for clock in _CLOCKS} for side in sides
            }
            for token in stream:
                found = []
                for side, decode in sides.items():
                    began = [clock() for clock in _CLOCKS.values()]
                    found.append(decode([token]))
                    for (name, clock), start in zip(_CLOCKS.items(), began, strict=True):
                        samples[side][name].append(clock() - start)
                check_same(*found)
            rounds.append(samples)
        spent, layers = engine.stats() - before, len(engine.catalog.layers)
    return {"layers": layers, "hits": spent.hits, "misses": spent.misses, "rounds": rounds}


def wait_until_all_are_read(engine: Any) -> None:
    """Wait for the reads that are done while nobody asks for anything."""
    end = time.monotonic() + _IDLE_SECONDS
    while engine.cache.currsize < engine.plan.slots and time.monotonic() < end:
        time.sleep(0.1)


def check_same(plain: Any, streamed: Any) -> None:
    """Stop where the two sides do not give the same bits: then no figure means anything."""
    if not np.array_equal(plain, streamed):
        raise SystemExit("the logits of mlx-lm and localmoe differ")


def memory(request: Answer) -> Answer:
    """Load and decode with one side; return what was taken and read by then, less what before."""
    from mlx_worker import Plain, taken

    from localmoe.backends.mlx.load import load
    from localmoe.settings import Settings

    folder, slots, tokens = Path(request["folder"]), request["slots"], request["tokens"]
    stages = [taken()]
    if slots is None:
        plain = Plain(folder)
        stages.append(taken())
        for token in token_stream(tokens, plain.n_vocab):
            plain.decode([token])
        return {"stages": [*stages, taken()]}
    with load(folder, Settings(slots=slots, context_tokens=tokens)) as engine:
        stages.append(taken())
        for token in token_stream(tokens, engine.tokenizer.n_vocab):
            engine.decode([token])
        stages.append(taken())
        stats, plan = engine.stats(), engine.plan
        experts = {
            "hits": stats.hits,
            "misses": stats.misses,
            "experts_read_bytes": stats.read_bytes,
            "slot_bytes": plan.slot_bytes,
            "resident_bytes": plan.resident_bytes,
        }
    return {"stages": stages, **experts}


def figures(found: Answer) -> Answer:
    """Return the cost per hit layer, of each round's medians and of the quickest tenth of all."""
    rounds, layers = found["rounds"], found["layers"]

    def extra(clock: str, samples: list[Answer], share: float) -> tuple[float, float]:
        plain, ours = (
            float(np.quantile([s for one in samples for s in one[side][clock]], share))
            for side in ("mlx-lm", "localmoe")
        )
        return (ours - plain) / layers, ours / plain

    answer: Answer = {}
    for clock in _CLOCKS:
        each = [extra(clock, [one], 0.5) for one in rounds]
        quick = extra(clock, rounds, 0.1)
        answer[clock] = {
            "per_layer_median_of_rounds": statistics.median(cost for cost, _ in each),
            "per_layer_rounds": [cost for cost, _ in each],
            "per_layer_quickest_tenth": quick[0],
            "ratio_median_of_rounds": statistics.median(ratio for _, ratio in each),
        }
    return answer


def show(costs: dict[str, Answer], rows: list[Answer]) -> None:
    """Print what was found."""
    for name, clock, each in (
        (name, clock, each) for name, cost in costs.items() for clock, each in cost.items()
    ):
        print(
            f"{name}, {clock}: {each['per_layer_median_of_rounds'] * 1e3:+.3f} ms per hit layer, "
            f"{each['per_layer_quickest_tenth'] * 1e3:+.3f} in the quickest tenth, "
            f"{each['ratio_median_of_rounds']:.2f} times mlx-lm's"
        )
    for row in rows:
        before, loaded, decoded = row["stages"]
        words = []
        for name, stage in (("load", loaded), ("decoding", decoded)):
            held = (stage["rss_bytes"] - before["rss_bytes"]) / 1e6
            read = stage["read_bytes"]
            words.append(f"after {name} +{held:.0f} MB held")
            if read is not None:
                words.append(f"{(read - before['read_bytes']) / 1e6:.0f} MB read")
        print(f"{row['side']}: {', '.join(words)}")


def main() -> None:
    """Measure and record."""
    parser = options(__doc__, rounds=6)
    parser.add_argument("--tiny", action="store_true", help="whether it all runs: seconds")
    parser.add_argument("--child", choices=["costs", "memory"], help="for this script itself")
    given = parser.parse_args()
    if given.child:
        request = json.loads(sys.stdin.read())
        print(json.dumps({"costs": costs, "memory": memory}[given.child](request)))
        return
    entry, tokens = entry_state(), 3 if given.tiny else 24
    sizes = {**COST, "num_hidden_layers": 4 if given.tiny else 60}
    large = sized(SMALL, MEMORY_EXPERT_NBYTES // (20 if given.tiny else 1))
    folders = [SCRATCH / "mlx-cost", SCRATCH / "mlx-memory"]
    try:
        nbytes = [write_checkpoint(*each) for each in zip(folders, (sizes, large), strict=True)]
        all_slots = sizes["num_hidden_layers"] * sizes["num_experts"]
        request = {"folder": str(folders[0]), "tokens": tokens, "rounds": given.rounds}
        found = {
            "one slot less": child("costs", {**request, "slots": all_slots - 1}),
            "all in slots": child("costs", {**request, "slots": all_slots}),
        }
        experts = large["num_hidden_layers"] * large["num_experts"]
        rows = []
        for side, slots in (("mlx-lm", None), ("localmoe", experts // 8), ("localmoe", experts)):
            asked = {"folder": str(folders[1]), "tokens": tokens * 2, "slots": slots}
            rows.append({"side": side, "slots": slots, **child("memory", asked)})
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
    cost = {name: figures(each) for name, each in found.items()}
    show(cost, rows)
    result = {
        "tiny": given.tiny,
        "sizes": [sizes, large],
        "checkpoint_bytes": nbytes,
        "wanted_seconds": WANTED_SECONDS,
        "experts": experts,
        "cost": cost,
        "memory": rows,
        "samples": found,
    }
    record(given.data, "mlx-cost", entry, result)


if __name__ == "__main__":
    main()
