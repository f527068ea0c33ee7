"""Claim: `plan` says within 20 % what `bench decode` measures, in four budgets of two models.

    python benchmarks/plan_accuracy.py [--rounds 3]

For each model the machine is measured (`localmoe bench measure`: its speed may differ from one hour
to the next), the model's routing is recorded along some tokens, and planned with both. Then other
tokens of the same kind are decoded for real, after a warm-up that fills the slots. They are as many
as planned: what two processes of localmoe take differs by some MiB, and that is a fifth of the
smaller model's experts.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from manifest import SCRATCH, Answer, entry_state, options, record
from synthetic import Shape, synthetic_model

from localmoe.backends.llama.planned import smallest_memory_mib
from localmoe.bench.predict import PredictRequest, follow_model
from localmoe.bench.process import run_child
from localmoe.bench.request import DecodeRequest
from localmoe.demo.builder import demo_model
from localmoe.prediction.trace_file import write_trace
from localmoe.settings import Settings

CONTEXT_TOKENS = 192
"""A plan is for a context that is nearly full: that of what is decoded here, not a long one."""
TOKENS, WARM_UP_TOKENS = 32, 96
RECORDED_TOKENS, LEFT_OUT_TOKENS = 420, 160
"""Those that are decoded for real come first in the stream: the recording begins behind them."""
MIB = 1 << 20
SYNTHETIC_MIB = (1536, 3072, 4608, 6144)
ROOMY_MIB = 6144
"""In which routing is recorded."""
CHILD = (sys.executable, "-m", "localmoe.cli.bench_child")


def recorded(model: Path, folder: Path, settings: Settings) -> Path:
    """Record what the model routes to; return the file."""
    trace, _ = follow_model(PredictRequest(str(model), settings, RECORDED_TOKENS))
    trace = replace(
        trace, routing=np.ascontiguousarray(trace.routing[LEFT_OUT_TOKENS:]), guesses={}
    )
    path = folder / f"{model.stem}.moetrace"
    with path.open("wb") as file:
        write_trace(file, [trace])
    return path


def run(*arguments: str) -> str:
    """Run a command of localmoe; return what it prints."""
    command = [sys.executable, "-m", "localmoe", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def planned(model: Path, trace: Path, settings: Settings) -> Answer:
    """Ask the command."""
    memory = f"{(settings.memory_bytes or 0) // MIB}MiB"
    options = ("--trace", str(trace), "--memory", memory, "--context", str(CONTEXT_TOKENS))
    answer: Answer = json.loads(run("plan", str(model), *options, "--json"))
    return answer


def measured(model: Path, settings: Settings) -> Answer:
    request = DecodeRequest(
        str(model), settings, TOKENS, warm_up_tokens=WARM_UP_TOKENS, device_seconds=0.2
    )
    answer = run_child(CHILD, request, os.environ)
    if answer is None:
        raise SystemExit("the measurement was killed")
    return answer


def compare(model: Path, budgets_mib: list[int], rounds: int) -> list[Answer]:
    """Return a row per budget: what was planned, what was measured, and the error.

    Budgets take turns: a machine that is slower for a minute is so for all of them.
    """
    run("bench", "measure")
    cases: list[tuple[Answer, Settings]] = []
    with tempfile.TemporaryDirectory() as folder:
        roomy = Settings(memory_bytes=ROOMY_MIB * MIB, context_tokens=2 * RECORDED_TOKENS)
        trace = recorded(model, Path(folder), roomy)
        for mib in budgets_mib:
            settings = Settings(memory_bytes=mib * MIB, context_tokens=CONTEXT_TOKENS)
            plan = planned(model, trace, settings)
            slots, experts = plan["plan"]["slots"], plan["plan"]["experts"]
            # With a number of slots given experts are served from them even where all fit.
            same = replace(settings, slots=slots) if slots < experts else settings
            cases.append((plan, same))
    samples: list[list[Answer]] = [[] for _ in cases]
    for _ in range(rounds):
        for (_, settings), found in zip(cases, samples, strict=True):
            found.append(measured(model, settings))
    return [
        row_of(model.name, mib, plan, found)
        for mib, (plan, _), found in zip(budgets_mib, cases, samples, strict=True)
    ]


def row_of(name: str, mib: int, plan: Answer, samples: list[Answer]) -> Answer:
    """Compare a plan with what was measured."""
    speed = statistics.median(sample["tokens_per_second"] for sample in samples)
    expected = plan["decode_tokens_per_second"]["expected"]
    row = {
        "model": name,
        "budget_mib": mib,
        "slots": [plan["plan"]["slots"], samples[0]["slots"]],
        "experts": plan["plan"]["experts"],
        "hit_rate": [plan["hit_rate"]["expected"], samples[0]["hit_rate"]],
        "planned": plan["decode_tokens_per_second"],
        "measured": [sample["tokens_per_second"] for sample in samples],
        "measured_resident": [sample["resident_tokens_per_second"] for sample in samples],
        "error": expected / speed - 1,
    }
    print(
        f"{name} {mib} MiB: planned {expected:.2f}, measured {speed:.2f} tok/s, "
        f"{row['error']:+.0%}; hits {row['hit_rate']}",
        flush=True,
    )
    return row


def slots_planned(model: Path, mib: int) -> tuple[int, int] | None:
    """Return how many experts a budget has slots for, and of how many; None: it is too small."""
    options = ("--memory", f"{mib}MiB", "--context", str(CONTEXT_TOKENS), "--json")
    try:
        plan = json.loads(run("plan", str(model), *options))["plan"]
    except subprocess.CalledProcessError:
        return None
    return plan["slots"], plan["experts"]


def streaming_budgets(model: Path) -> list[int]:
    """Return three budgets in which a small model streams, and the first in which it fits."""
    settings = Settings(context_tokens=CONTEXT_TOKENS)
    # The command's own process is smaller than this one: the least that it takes lies below.
    mib = smallest_memory_mib(model, settings)
    while (found := slots_planned(model, mib)) and found[0] < found[1]:
        mib += 4
    fits = mib
    while (found := slots_planned(model, mib)) and found[0] == found[1]:
        fits, mib = mib, mib - 1
    least = mib
    while slots_planned(model, least - 1):
        least -= 1
    return [least + (mib - least) * step // 2 for step in range(3)] + [fits]


def main() -> None:
    given = options(__doc__, rounds=3).parse_args()
    entry = entry_state()
    synthetic = synthetic_model(SCRATCH / "synthetic.gguf", Shape())
    demo = demo_model(SCRATCH)
    rows = compare(synthetic, list(SYNTHETIC_MIB), given.rounds)
    rows += compare(demo, streaming_budgets(demo), given.rounds)
    worst = max(abs(row["error"]) for row in rows)
    print(f"largest error: {worst:.0%}")
    figures = json.loads(run("bench", "measure", "--show", "--json"))
    figures.pop("drive")  # a folder of this machine
    result = {"rows": rows, "largest_error": worst, "figures": figures}
    record(given.data, "plan-accuracy", entry, result)


if __name__ == "__main__":
    main()
