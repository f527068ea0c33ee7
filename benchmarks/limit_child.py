"""Runs one side of limit.py in a process of its own: under a memory limit, up to a deadline."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from typing import Any

import psutil
from manifest import HERE, REPOSITORY, Answer

WORKER = HERE / "limit_worker.py"
LLAMA_SPINCOUNT = "300000"
"""libgomp's own default, written out: what llama.cpp has without our bindings."""


def run_worker(
    kind: str,
    job: Answer,
    *,
    limit_mib: int | None = None,
    deadline_seconds: float | None = None,
) -> Answer:
    """Run `limit_worker.py` and return its answer.

    With `limit_mib`, as root: in a control group, with a cold page cache (`benchmarks/membox`).
    Where the deadline passes, the answer is {"deadline_seconds", "chunks"}: what was told so far.
    """
    boxed = limit_mib is not None and os.geteuid() == 0
    box = [str(HERE / "membox"), str(limit_mib)] if boxed else []
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    if kind.startswith("peer"):
        environment.setdefault("GOMP_SPINCOUNT", LLAMA_SPINCOUNT)
    process = subprocess.Popen(
        [*box, sys.executable, str(WORKER), kind, json.dumps(job)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    ended = True
    try:
        out, err = process.communicate(timeout=deadline_seconds)
    except subprocess.TimeoutExpired:
        ended = False
        end_children(process.pid, itself=not boxed)
        out, err = process.communicate()
    except BaseException:
        end_children(process.pid, itself=not boxed)
        process.wait()
        raise
    return _answer(kind, out, err, process.returncode, deadline_seconds if not ended else None)


def _answer(
    kind: str, out: str, err: str, status: int, passed_deadline: float | None
) -> dict[str, Any]:
    lines = [json.loads(line) for line in out.splitlines()]
    if passed_deadline is not None:
        return {"deadline_seconds": passed_deadline, "chunks": lines}
    if status or not lines:
        raise SystemExit(f"{kind}: exit {status}: {err.strip()[-2000:]}")
    answer: Answer = lines[-1]
    if len(lines) > 1:
        answer["chunks"] = lines[:-1]
    if peak := re.search(r"membox: peak (\d+) MiB", err):
        answer["group_peak_mib"] = int(peak[1])
    return answer


def end_children(pid: int, *, itself: bool) -> None:
    """End what a process started: membox then removes its control group and ends as well."""
    with contextlib.suppress(psutil.NoSuchProcess):  # it may end by itself meanwhile
        parent = psutil.Process(pid)
        for child in [*parent.children(recursive=True), *([parent] if itself else [])]:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
