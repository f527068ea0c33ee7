"""Claim: 20,000 random tokens leave nothing behind, and not one wrong bit.

    python benchmarks/soak.py [--tokens 20000] [--checks 100] [--seed 0] [--models qwen3moe,...]

As root: the engine runs under a hard limit as large as its budget (benchmarks/membox). On each of
three architectures prompts, answers, truncations, cancellations, saves, restores and re-openings
come in random order, while experts are streamed. Memory, threads and file descriptors must not grow
after the first thousand tokens; at random moments the history of the context is written down,
and repeated afterwards with all experts in memory: every call must give the same bits. Ends with
status 1 if anything was wrong.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from manifest import HERE, REPOSITORY, SCRATCH, entry_state, options, record

sys.path.insert(0, str(REPOSITORY / "tests"))

from soak_job import Job  # noqa: E402

import zoo  # noqa: E402
from localmoe.settings import available_threads  # noqa: E402

Answer = dict[str, Any]

SHAPE = {
    "embedding": 512,
    "expert_feed_forward": 1024,
    "experts_used": 4,
    "resident_type": "Q8_0",
}
MODELS: dict[str, tuple[int, dict[str, Any]]] = {
    # Fewer slots than a chunk asks a layer for, so that layers are computed in passes.
    "qwen3moe": (216, {"layers": 4, "experts": 96, "expert_types": (("Q4_K",) * 3,)}),
    "gpt-oss": (256, {"layers": 6, "experts": 32, "expert_types": (("Q4_K",) * 3,), "window": 32}),
    # Two sizes of experts.
    "qwen3next": (
        264,
        {
            "layers": 6,
            "experts": 48,
            "expert_types": (("Q4_K",) * 3, ("Q4_K", "Q4_K", "Q6_K")),
        },
    ),
}
"""The budget in MiB, and the shape where it is not the one above: 160 to 260 MB of experts."""
CONTEXT_TOKENS, CHUNK_TOKENS = 512, 48
WARM_UP_TOKENS = 1000
ALLOWED = {"rss_bytes": 4 << 20, "group_bytes": 8 << 20, "threads": 0, "descriptors": 0}
"""How much more may be held at most in the second half than in the first one."""


def run_worker(action: str, job: Job, limit_mib: int | None) -> int | None:
    """Run a process of the soak, under a limit if one is given; return the group's peak in MiB."""
    print(f" {action}", file=sys.stderr, flush=True)
    worker = [sys.executable, str(HERE / "soak_worker.py"), action, f"{job.folder}/job.json"]
    box = [str(HERE / "membox"), str(limit_mib)] if limit_mib else []
    # A session of its own: Ctrl-C comes to this process alone, which then ends the others in order.
    process = subprocess.Popen(
        [*box, *worker],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    peak = None
    try:
        for line in process.stderr or ():
            print(f"  {line.rstrip()}", file=sys.stderr, flush=True)
            if found := re.match(r"membox: peak (\d+) MiB", line):
                peak = int(found[1])
        status = process.wait()
    except BaseException:
        end(process, under_membox=limit_mib is not None)
        raise
    if status:
        raise SystemExit(f"{action} of {Path(job.model).name}: status {status}")
    return peak


def end(process: subprocess.Popen[str], *, under_membox: bool) -> None:
    """End the worker and what it started; membox, its parent, then removes the control group."""
    with contextlib.suppress(psutil.NoSuchProcess):  # they may end by themselves meanwhile
        found = psutil.Process(process.pid)
        for child in found.children(recursive=True):
            child.terminate()
    if not under_membox:
        process.terminate()
    process.wait()


def growth(samples: Sequence[dict[str, int]], name: str) -> Answer:
    """Say how a holding went after the warm-up: its slope, its maximum and the halves compared."""
    later = [sample for sample in samples if sample["tokens"] >= WARM_UP_TOKENS]
    values = [sample[name] for sample in later]
    if len(values) < 2:
        raise SystemExit(f"--tokens is too small: no two samples after {WARM_UP_TOKENS} tokens")
    slope = np.polyfit([sample["tokens"] / 1000 for sample in later], values, 1)[0]
    half = len(values) // 2
    return {
        "first": values[0],
        "maximum": max(values),
        "slope_per_1000_tokens": round(float(slope), 2),
        "grown": max(values[half:]) - max(values[:half]),
        "allowed": ALLOWED[name],
    }


def soak(name: str, tokens: int, checks: int, seed: int) -> Answer:
    """Write the model, drive it under the limit, replay the checks without; return the findings."""
    limit_mib, changes = MODELS[name]
    SCRATCH.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="soak-", dir=SCRATCH) as folder:
        print(f"{name}: {tokens} tokens in {limit_mib} MiB", file=sys.stderr, flush=True)
        model = zoo.write(Path(folder), name, **SHAPE, **changes)
        job = Job(
            model=str(model),
            folder=folder,
            budget_bytes=limit_mib << 20,
            context_tokens=CONTEXT_TOKENS,
            chunk_tokens=CHUNK_TOKENS,
            threads=available_threads(),
            tokens=tokens,
            checks=checks,
            seed=seed,
        )
        Path(folder, "job.json").write_text(json.dumps(asdict(job)))
        peak = run_worker("drive", job, limit_mib)
        driven: Answer = json.loads(Path(folder, "drive.json").read_text())
        run_worker("replay", job, None)
        replayed: Answer = json.loads(Path(folder, "replay.json").read_text())
        return {
            "budget_mib": limit_mib,
            "group_peak_mib": peak,
            "model_bytes": model.stat().st_size,
            **driven,
            "growth": {field: growth(driven["samples"], field) for field in ALLOWED},
            "growth_when_closed": {field: growth(driven["closed"], field) for field in ALLOWED},
            "replay": replayed,
        }


def judge(answers: dict[str, Answer]) -> dict[str, bool]:
    """Return what the claim says, each true or false."""

    def steady(*names: str) -> bool:
        # Closed as well: a budget is split anew for each engine, so a leak costs slots, not memory.
        kinds = ("growth", "growth_when_closed")
        found = [a[kind][name] for a in answers.values() for kind in kinds for name in names]
        return all(growth["grown"] <= growth["allowed"] for growth in found)

    every = answers.values()
    return {
        "memory_steady": steady("rss_bytes", "group_bytes"),
        "threads_steady": steady("threads"),
        "descriptors_steady": steady("descriptors"),
        "no_wrong_bit": not any(a["replay"]["wrong"] for a in every),
        "computed_in_passes": any(a["stats"]["split_layers"] for a in every),
    }


def main() -> None:
    parser = options(__doc__, rounds=1)
    parser.add_argument("--tokens", type=int, default=20_000, help="of all models together")
    parser.add_argument("--checks", type=int, default=100, help="of all models together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", default=",".join(MODELS))
    given = parser.parse_args()
    names = given.models.split(",")
    if unknown := set(names) - set(MODELS):
        parser.error(f"no such model: {', '.join(unknown)}; there are {', '.join(MODELS)}")
    entry = entry_state()
    tokens, checks = -(-given.tokens // len(names)), -(-given.checks // len(names))
    answers = {
        name: soak(name, tokens, checks, given.seed + number) for number, name in enumerate(names)
    }
    verdict = judge(answers)
    record(given.data, "soak", entry, {"verdict": verdict, "seed": given.seed, "models": answers})
    for name, value in verdict.items():
        print(f"{name:30} {value}")
    if not all(verdict.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
