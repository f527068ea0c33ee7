"""The processes of the soak: one drives an engine under a memory limit, one replays what it did.

    python benchmarks/soak_worker.py drive JOB.json     # under membox
    python benchmarks/soak_worker.py replay JOB.json    # without a limit

Started by benchmarks/soak.py. The first writes drive.json and checks.jsonl, the second replay.json.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from soak_driver import Driver
from soak_job import Job, Step, digest

from localmoe import Engine


def drive(job: Job) -> dict[str, Any]:
    """Soak; return what it did and held."""
    began = time.perf_counter()
    driver = Driver(job)
    experts = driver.engine.plan.experts
    driver.run()
    totals = {
        name: sum(asdict(stats)[name] for stats in driver.stats)
        for name in ("hits", "misses", "read_bytes", "split_layers")
    }
    return {
        "tokens": driver.tokens,
        "seconds": round(time.perf_counter() - began, 1),
        "experts": experts,
        "done": dict(driver.done),
        "stats": totals,
        "openings": driver.openings,
        "samples": driver.samples,
        "closed": driver.closed,
    }


def replay(job: Job) -> dict[str, Any]:
    """Repeat every history with all experts in memory; return what came out differently."""
    histories = [json.loads(line) for line in (Path(job.folder) / "checks.jsonl").open()]
    compared, wrong = 0, []
    with job.load(None) as engine:
        for number, history in enumerate(histories):
            engine.truncate(0)
            differing = [i for i, step in enumerate(history) if not same(engine, step)]
            compared += sum("sha256" in step for step in history)
            if differing:
                wrong.append({"history": number, "steps": differing})
                print(f"history {number}: steps {differing} differ", file=sys.stderr, flush=True)
    return {"histories": len(histories), "calls": compared, "wrong": wrong}


def same(engine: Engine, step: Step) -> bool:
    """Repeat a step and say whether the same came of it."""
    if "sha256" in step:
        return bool(digest(engine.decode(step["tokens"], step["logits"])) == step["sha256"])
    start = engine.position
    if "truncate" in step:
        engine.truncate(step["truncate"])
    elif "cancelled" in step:
        engine.decode(step["cancelled"], "none")
        engine.truncate(start)
    else:
        engine.mark()
    return bool(engine.position == step["position"])


def main() -> None:
    action, file = sys.argv[1:]
    job = Job(**json.loads(Path(file).read_text()))
    answer = {"drive": drive, "replay": replay}[action](job)
    (Path(job.folder) / f"{action}.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
