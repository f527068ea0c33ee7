"""`localmoe doctor`: would `localmoe run` work here, and what would make it faster."""

from __future__ import annotations

import datetime
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from localmoe.cli.bench_options import AsJson
from localmoe.cli.model_argument import ModelFile
from localmoe.cli.options import Memory, cache_dir, figures_dir, state_dir
from localmoe.cli.terminal import console_for, without_controls
from localmoe.doctor.check import Check, Verdict, runs
from localmoe.errors import SettingsError

if TYPE_CHECKING:
    from localmoe.doctor.folders import Measured

HELP = """Look at this machine: would localmoe run work, and what would make it better.

Each line says what was found, and where it could be better the command that mends it. With MODEL \
also whether that model would run. The exit status is 0 exactly where localmoe run would work.

\b
Examples:
  localmoe doctor
  localmoe doctor big.gguf --memory 8GiB
  localmoe doctor --json
"""
_CHILD = (sys.executable, "-m", "localmoe.cli.doctor_child")
_MARKS = {Verdict.OK: ("✓", "ok"), Verdict.BETTER: ("!", "!"), Verdict.STOPS: ("✗", "STOP")}
_STYLES = {Verdict.OK: "green", Verdict.BETTER: "yellow", Verdict.STOPS: "red"}

Model = ModelFile


def doctor(model: Model = None, memory: Memory = None, as_json: AsJson = False) -> None:
    """Examine, show, and exit with what was found."""
    from localmoe.doctor.child import ask_child
    from localmoe.doctor.page import Visit, examine
    from localmoe.doctor.system import System

    visit = Visit(
        model=model,
        memory_bytes=memory,
        cache=cache_dir(),
        state=state_dir(),
        measured=_measured(model or cache_dir()),
        encoding=getattr(sys.stdout, "encoding", None) or "unknown",
        is_terminal=sys.stdout is not None and sys.stdout.isatty(),
        now=datetime.datetime.now(datetime.UTC),
    )
    checks = examine(System(os.environ), visit, partial(ask_child, _CHILD, os.environ))
    if as_json:
        typer.echo(json.dumps({"works": runs(checks), "checks": [asdict(c) for c in checks]}))
    else:
        _show(checks)
    raise typer.Exit(0 if runs(checks) else 1)


def _measured(place: Path) -> Measured:
    from localmoe.doctor.folders import Measured
    from localmoe.planning.figures import find_figures

    try:
        figures = find_figures(figures_dir(), place)
    except SettingsError as error:
        return Measured(error=str(error))
    if figures is None:
        return Measured()
    return Measured(figures.measured_at, n_doubtful=len(figures.doubtful))


def _show(checks: Sequence[Check]) -> None:
    """Draw a table on a terminal; elsewhere a command that is cut into lines is of no use."""
    from rich.table import Table
    from rich.text import Text

    console = console_for(sys.stdout)
    plain = "utf" not in console.encoding.lower()
    table = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(3):
        table.add_column(overflow="fold")
    for check in checks:
        mark = _MARKS[check.verdict][plain]
        found = without_controls(check.found)
        mend = f"{'->' if plain else '→'} {without_controls(check.mend)}" if check.mend else ""
        if console.is_terminal:
            text = Text(found).append(f"\n{mend}" if mend else "", style="bold")
            table.add_row(Text(mark, style=_STYLES[check.verdict]), check.name, text)
        else:
            lines = [found, mend] if mend else [found]
            console.print(f"{mark:5}{check.name:20}" + f"\n{'':25}".join(lines), markup=False)
    if console.is_terminal:
        console.print(table)
    console.print(f"\n{_summary(checks)}")


def _summary(checks: Sequence[Check]) -> str:
    stopping = [check.name for check in checks if check.verdict is Verdict.STOPS]
    slower = [check.name for check in checks if check.verdict is Verdict.BETTER]
    if stopping:
        return f"localmoe run does not work here: {', '.join(stopping)}."
    better = f" Could be better: {', '.join(slower)}." if slower else ""
    return f"localmoe run works here.{better}"
