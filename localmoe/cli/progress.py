"""A progress bar on standard error while something takes long; nothing where nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from localmoe.cli.terminal import console_for
from localmoe.settings import Progress as ProgressFunction


@contextmanager
def progress_bar() -> Iterator[ProgressFunction | None]:
    """Yield a function for `localmoe.load` and its like, which counts bytes; the bar vanishes."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    with Progress(
        *columns, TimeRemainingColumn(), console=console_for(sys.stderr), transient=True
    ) as bar:
        task = bar.add_task("opening the model", total=None)

        def show(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        yield show
