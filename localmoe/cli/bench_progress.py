"""A bar on standard error that counts bytes and tokens alike: it shows shares."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from localmoe.cli.terminal import console_for
from localmoe.settings import Progress as ProgressFunction


@contextmanager
def share_bar() -> Iterator[ProgressFunction | None]:
    """Yield a progress function; None where nobody looks. Drawn rarely: it takes time itself."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    console = console_for(sys.stderr)
    with Progress(*columns, console=console, transient=True, refresh_per_second=2) as bar:
        task = bar.add_task("opening the model", total=None)

        def show(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        yield show
