"""What `localmoe plan` shows of one model to people: one screen."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from localmoe.cli.planner import Plan
from localmoe.cli.terminal import console_for
from localmoe.planning.outlook import Situation, Span
from localmoe.planning.plan import MemoryPlan
from localmoe.planning.sizes import format_nbytes

_BAR_CELLS = 40
_COLOURS = ("blue", "cyan", "magenta", "yellow", "green")
_MARKS = ("▓", "▒", "░", "▚", "█")
_ADVICE_SHOWN = 5


def show(planned: Plan) -> None:
    """Print the answer, where every byte goes, the speed and what would make it faster."""
    console = console_for(sys.stdout)
    now = planned.situation
    console.print(Text(verdict(planned), style="bold"))
    console.print()
    _show_memory(console, now)
    _show_drive(console, now)
    console.print()
    console.print(_speeds(planned))
    console.print()
    for line in formula(planned):
        console.print(line)
    if planned.advice:
        console.print("\nWhat would make it faster:")
        console.print(_advice(planned))


def verdict(planned: Plan) -> str:
    """Say in a sentence or two whether it fits, and what that means."""
    now, where = planned.situation, f"{planned.target.title} on {planned.machine}"
    decode = now.decode()
    speed = f"about {_number(decode.expected)} tokens per second"
    whole = format_nbytes(now.catalog.resident_nbytes + now.catalog.expert_nbytes)
    if not now.plan.experts:
        return f"{where}: fits. All {whole} of it are in memory: {speed}."
    if not now.plan.streams:
        return f"{where}: fits as a whole, all {whole} in memory: {speed}."
    return (
        f"{where}: runs, though {whole} are more than {format_nbytes(now.plan.budget_bytes)}. "
        f"{now.held_share:.0%} of its experts are kept in memory, the others are read from the "
        f"drive: {speed}."
    )


def _show_memory(console: Console, now: Situation) -> None:
    """Draw memory as one bar, and list what it holds."""
    plan = now.plan
    kv_type = f", {plan.kv_type}" if now.engine == "llama" else ""
    held = (
        ("weights that every token uses", plan.resident_bytes),
        (f"KV cache, {plan.context_tokens:,} tokens{kv_type}", plan.kv_bytes),
        (f"computing, {plan.prefill_chunk_tokens:,} tokens at once", plan.compute_bytes),
        ("the program and a margin", plan.base_bytes + plan.mark_bytes),
        (_experts_said(plan), plan.slot_bytes),
    )
    bar = Text("memory  ")
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for (what, nbytes), colour, mark in zip(held, _COLOURS, _MARKS, strict=True):
        cells = round(_BAR_CELLS * nbytes / plan.budget_bytes)
        bar.append(mark * cells, style=colour)
        if nbytes:
            table.add_row(Text(f"        {mark}", style=colour), format_nbytes(nbytes), what)
    bar.append("·" * max(0, _BAR_CELLS - len(bar.plain) + 8), style="dim")
    bar.append(f"  {format_nbytes(plan.total_bytes)} of {format_nbytes(plan.budget_bytes)}")
    console.print(bar)
    console.print(table)


def _experts_said(plan: MemoryPlan) -> str:
    if not plan.streams:
        return f"all {plan.experts:,} experts"
    return f"slots for {plan.slots:,} of {plan.experts:,} experts"


def _show_drive(console: Console, now: Situation) -> None:
    """Draw what of the experts lies on the drive alone."""
    if not now.plan.streams:
        return
    missing = now.catalog.expert_nbytes - now.plan.slot_bytes
    cells = max(1, round(_BAR_CELLS * missing / now.catalog.expert_nbytes))
    bar = Text("drive   ")
    bar.append("█" * cells, style="red")
    bar.append("·" * (_BAR_CELLS - cells), style="dim")
    bar.append(f"  {format_nbytes(missing)} of {format_nbytes(now.catalog.expert_nbytes)} of ")
    bar.append("experts are read when they are needed")
    console.print(bar)


def _speeds(planned: Plan) -> Table:
    now = planned.situation
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    table.add_row("decode", _expected(now.decode()), _between(now.decode()))
    table.add_row("prefill", _expected(now.prefill()), _between(now.prefill()))
    if now.plan.streams:
        hits = now.hits
        table.add_row(
            "found in memory", f"{hits.expected:.0%}", f"{hits.low:.0%} to {hits.high:.0%}"
        )
        read = f"of {now.work.routed_nbytes / 1e9:.2f} GB of experts that it uses"
        table.add_row("read per token", f"{now.read_bytes_per_token / 1e9:.2f} GB", read)
    if planned.graphics:
        speed = planned.graphics.decode()
        table.add_row(
            "with its GPU", _expected(speed), f"{_between(speed)}: not for GGUF files yet"
        )
    return table


def formula(planned: Plan) -> list[str]:
    """Say how the speed comes about, with the numbers put in."""
    now = planned.situation
    lines = []
    rates = now.views[1]
    used = (now.work.resident_nbytes + now.work.routed_nbytes) / 1e9
    computing = f"computing {used:.2f} GB of weights"
    if not rates.decode:
        computing += f" at {rates.memory_bytes_per_second / 1e9:.0f} GB/s"
    if now.plan.streams:
        lines.append(
            f"A token takes {computing}, and reading {now.read_bytes_per_token / 1e9:.2f} GB at "
            f"{now.read_bytes_per_second / 1e9:.1f} GB/s, partly at the same time; the range "
            "runs from all to nothing of it at the same time."
        )
        lines.append(f"Hit rate: {now.hits.source}.")
    else:
        lines.append(f"A token takes {computing}.")
    lines.append(f"Machine: {planned.figures}. Model: {planned.target.source}.")
    return lines


def _advice(planned: Plan) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right")
    table.add_column()
    table.add_column(justify="right")
    for place, advice in enumerate(planned.advice[:_ADVICE_SHOWN], start=1):
        speed = f"{_number(advice.tokens_per_second)} tok/s"
        table.add_row(f"{place}.", advice.change, f"{speed}, {advice.gain:.1f} times")
    return table


def _expected(span: Span) -> str:
    return f"{_number(span.expected)} tok/s"


def _between(span: Span) -> str:
    return f"{_number(span.low)} to {_number(span.high)}"


def _number(value: float) -> str:
    """Return two or three digits that mean something."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2g}"
