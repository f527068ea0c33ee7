"""Standard output and standard error, for people and for pipes."""

from __future__ import annotations

import os
import re
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def console_for(stream: TextIO) -> Console:
    """Return a console that colours only on a terminal, and not where NO_COLOR is set."""
    from rich.console import Console  # takes its time, and often nothing is said

    return Console(file=stream, highlight=False, soft_wrap=not stream.isatty())


def dim_line(text: str) -> None:
    """Say something by the way, on standard error."""
    from rich.text import Text

    console_for(sys.stderr).print(Text(text, style="dim"))


def error_line(text: str) -> None:
    """Say what went wrong, on one line of standard error."""
    from rich.text import Text

    console_for(sys.stderr).print(Text(f"localmoe: {' '.join(text.split())}", style="red"))


def without_controls(text: str) -> str:
    """Return text that cannot steer a terminal: only newlines and tabs are left of the controls.

    Halves of characters, as in names that are not UTF-8, cannot be written and go, too.
    """
    return _CONTROLS.sub("", text)


def is_interactive() -> bool:
    """Whether a person sits at both ends: standard input and standard output are terminals."""
    return _is_terminal(sys.stdin) and _is_terminal(sys.stdout)


@contextmanager
def without_echo() -> Iterator[None]:
    """Keep keys from appearing in the middle of what is being drawn; Ctrl-C still works."""
    if not _is_terminal(sys.stdin):
        yield
        return
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    quiet = [*before]
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(keyboard, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def discard_output() -> None:
    """After a broken pipe: keep the interpreter from complaining once more when it exits."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()
