"""Asks the engine in a process of its own: it may be built for another processor, and die of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from localmoe.errors import BudgetError, LocalMoeError
from localmoe.planning.machine import available_memory_bytes
from localmoe.planning.planned_model import PlannedModel
from localmoe.settings import Settings

Answer = Mapping[str, Any]
Ask = Callable[[Sequence[str]], Answer]
"""From words to what the child answers: `died` says how it ended where it said nothing."""
Plan = Callable[[Path, Settings, int], PlannedModel]
_TIMEOUT_SECONDS = 180


def ask_child(
    command: Sequence[str], environment: Mapping[str, str], words: Sequence[str]
) -> Answer:
    """Start `command`, which prints what `answer` returns for these words, as JSON."""
    try:
        done = subprocess.run(
            [*command, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_TIMEOUT_SECONDS,
            env={**environment, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
    except subprocess.TimeoutExpired:
        return {"died": f"it did not answer within {_TIMEOUT_SECONDS} seconds"}
    except OSError as error:
        return {"died": f"it could not be started: {error.strerror}"}
    if done.returncode < 0:
        return {"died": f"it died of signal {-done.returncode} ({_name(-done.returncode)})"}
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        return {"died": lines[-1].strip() if lines else f"it ended with status {done.returncode}"}
    return found


def answer(words: Sequence[str]) -> Answer:
    """Return what was asked for, or `error` and its `kind`: the child's side.

    Words are "engine", or "model", a path and a budget in bytes (0: what is available).
    """
    try:
        if words[0] == "engine":
            return _engine()
        return _model(Path(words[1]), int(words[2]))
    except LocalMoeError as error:
        return {"error": str(error), "kind": type(error).__name__}


def _engine() -> Answer:
    from localmoe.backends.llama.features import built_features
    from localmoe.native.library import library

    return {"features": sorted(built_features()), "compiled": library() is not None}


def _model(path: Path, budget_bytes: int) -> Answer:
    settings = Settings(memory_bytes=budget_bytes or None)
    budget = budget_bytes or available_memory_bytes()
    plan, smallest_mib = _planners(path)
    smallest = smallest_mib(path, settings)
    try:
        planned = plan(path, settings, budget)
    except BudgetError as error:
        kind = type(error).__name__
        return {"error": str(error), "kind": kind, "smallest_mib": smallest, "budget_bytes": budget}
    catalog = planned.catalog
    return {
        "architecture": catalog.architecture,
        "files": len(catalog.paths),
        "nbytes": catalog.resident_nbytes + catalog.expert_nbytes,
        "experts": catalog.n_experts_total,
        "streams": planned.slot_plan.plan.streams,
        "smallest_mib": smallest,
        "budget_bytes": budget,
    }


def _planners(path: Path) -> tuple[Plan, Callable[[Path, Settings], int]]:
    """Return what plans for a model, and what finds the smallest budget for it."""
    from localmoe.backends.opening import engine_name

    if engine_name(path) == "torch":
        from localmoe.planning.checkpoint_plan import plan_checkpoint, smallest_checkpoint_mib

        return plan_checkpoint, smallest_checkpoint_mib
    from localmoe.backends.llama.planned import plan_model, smallest_memory_mib

    return plan_model, smallest_memory_mib


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
