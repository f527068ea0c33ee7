"""Runs `localmoe bench decode` and records what came out, with all that makes a figure credible.

A record holds the commit, the machine, the state it was in when the benchmark began, what was asked
for, and the raw samples.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
sys.path.insert(0, str(REPOSITORY))  # the tree that is measured, whatever is installed

from localmoe.bench.machine import describe_machine, describe_versions  # noqa: E402

DATA = REPOSITORY / "docs" / "measurements" / "data"
SCRATCH = REPOSITORY / "build" / "benchmarks"
Answer = dict[str, Any]


def options(description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """Return a parser with what every benchmark takes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--data", type=Path, default=DATA, help="where the record is written")
    return parser


def bench_decode(
    model: Path,
    *arguments: str,
    limit_mib: int | None = None,
    environment: dict[str, str] | None = None,
) -> Answer:
    """Run one `localmoe bench decode --json`, under a hard memory limit if one is given.

    The answer gets `command` and, under a limit, `group_peak_mib`.
    """
    command = ["localmoe", "bench", "decode", model.name, *arguments, "--json"]
    full = [sys.executable, "-m", "localmoe", "bench", "decode", str(model), *arguments, "--json"]
    if limit_mib:
        command = ["membox", str(limit_mib), *command]
        full = [str(HERE / "membox"), str(limit_mib), *full]
    print("$ " + " ".join(command), file=sys.stderr, flush=True)
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    done = subprocess.run(
        full,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path, **(environment or {})},
    )
    if done.returncode:
        raise SystemExit(f"exit {done.returncode}: {done.stderr.strip()}")
    answer: Answer = {"command": " ".join(command), **json.loads(done.stdout)}
    if limit_mib:
        peak = re.search(r"membox: peak (\d+) MiB", done.stderr)
        answer["group_peak_mib"] = int(peak[1]) if peak else None
    return answer


def entry_state() -> dict[str, object]:
    """Say in what state the machine is; to be called before anything is measured."""
    memory = psutil.virtual_memory()
    return {
        "load_average": psutil.getloadavg(),
        "available_memory_bytes": memory.available,
        "swap_bytes": psutil.swap_memory().total,
        "processes_running": _runnable(),
    }


def record(folder: Path, name: str, entry: dict[str, object], result: Answer) -> Path:
    """Write `<date>-<name>.json`; return its path."""
    now = datetime.datetime.now(datetime.UTC)
    manifest = {
        "benchmark": name,
        "time": now.isoformat(timespec="seconds"),
        **_commit(),
        "machine": _machine(),
        "entry": entry,
        **result,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{now:%Y-%m-%d}-{name}.json"
    path.write_text(json.dumps(manifest, indent=1) + "\n")
    print(f"recorded in {path}", file=sys.stderr)
    return path


def _commit() -> dict[str, object]:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True
        ).stdout.strip()

    return {
        "commit": git("rev-parse", "HEAD"),
        "changed_since_commit": git("status", "--porcelain", "--", "localmoe").splitlines(),
    }


def _machine() -> dict[str, object]:
    return {**describe_machine(), "versions": describe_versions(), "libc": platform.libc_ver()[1]}


def _runnable() -> int:
    """Return how many other threads want a processor right now: above 0, figures are disturbed."""
    try:
        fields = Path("/proc/loadavg").read_text().split()
    except OSError:  # not Linux
        return -1
    return int(fields[3].split("/")[0]) - 1
