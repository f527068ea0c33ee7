"""What `localmoe plan --all` shows: every known model on one machine."""

from __future__ import annotations

import sys
from typing import Any

from rich.table import Table

from localmoe.cli.bench_progress import share_bar
from localmoe.cli.plan_target import plan_target
from localmoe.cli.planner import Planner
from localmoe.cli.terminal import console_for
from localmoe.errors import BudgetError
from localmoe.planning.sizes import format_nbytes
from localmoe.synthetic.published import CONFIGS

Row = dict[str, Any]
_COLUMNS = ("model", "GB", "in memory", "found", "read GB", "tok/s", "range", "prefill")
_PIPED_WIDTH = 110
"""A pipe has no width that a table could be cut to."""


def compare(planner: Planner, quantization: str | None) -> list[Row]:
    """Plan for every known model; one that does not fit says what it needs."""
    rows = []
    with share_bar() as progress:
        for done, name in enumerate(CONFIGS):
            if progress:
                progress(name, done, len(CONFIGS))
            rows.append({"name": name, **_row(planner, name, quantization)})
    return rows


def _row(planner: Planner, name: str, quantization: str | None) -> Row:
    with plan_target(name, quantization) as target:
        try:
            return planner.plan(target).as_json()
        except BudgetError as error:
            return {"model": target.title, "error": str(error)}


def show_table(planner: Planner, rows: list[Row]) -> None:
    """Print a row per model: its size, how much of it is in memory, and its speeds."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in _COLUMNS:
        table.add_column(title, justify="left" if title == "model" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row))
    console = console_for(sys.stdout)
    if not sys.stdout.isatty():
        console.width = _PIPED_WIDTH
    console.print(f"{planner.title}, {format_nbytes(planner.budget_bytes)} for the model")
    console.print(table)
    console.print(f"Machine: {planner.figures}. Ranges and formulas: docs/planning.md.")
    for row in rows:
        if "error" in row:
            console.print(f"{row['model']}: {row['error']}")


def _cells(row: Row) -> list[str]:
    if "error" in row:
        return [row["model"], "", "too small", "", "", "", "", ""]
    plan, decode, prefill = (
        row[key] for key in ("plan", "decode_tokens_per_second", "prefill_tokens_per_second")
    )
    share = plan["slots"] / plan["experts"]
    return [
        row["model"],
        f"{row['file_bytes'] / 1e9:.1f}",
        f"{share:.0%}",
        f"{row['hit_rate']['expected']:.0%}",
        f"{row['bytes_read_per_token'] / 1e9:.2f}",
        f"{decode['expected']:.1f}",
        f"{decode['low']:.1f} to {decode['high']:.1f}",
        f"{prefill['expected']:.0f}",
    ]
