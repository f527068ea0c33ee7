"""Folders that localmoe writes to, figures that were measured, and the terminal."""

from __future__ import annotations

import datetime
import tempfile
from dataclasses import dataclass
from pathlib import Path

from localmoe.doctor.check import Check, better, ok
from localmoe.doctor.system import System, existing

_OLD_DAYS = 180
_MEASURE = "localmoe bench measure"


def writing_error(folder: Path) -> str | None:
    """Return why nothing can be written to a folder, or to where it would be made; None: it can."""
    try:
        with tempfile.TemporaryFile(dir=existing(folder)):
            return None
    except OSError as error:
        return error.strerror or str(error)


def check_folder(name: str, folder: Path, variable: str) -> Check:
    """Try to write to a folder; `variable` names another one."""
    error = writing_error(folder)
    if error is None:
        return ok(name, str(folder))
    return better(
        name,
        f"nothing can be written to {folder}: {error}",
        f"export {variable}=/a/folder/that/is/yours",
    )


@dataclass(frozen=True)
class Measured:
    """When this machine's figures were measured (ISO 8601; None: never), or why that is unknown."""

    at: str | None = None
    error: str | None = None
    n_doubtful: int = 0
    """How many of them cannot be relied on."""


def check_figures(measured: Measured, now: datetime.datetime) -> Check:
    """Look whether plans know this machine's own speed."""
    name = "figures"
    if measured.error is not None:
        return better(name, measured.error, _MEASURE)
    if measured.at is None:
        return better(name, "none: plans guess this machine's speed", _MEASURE)
    try:
        then = datetime.datetime.fromisoformat(measured.at)
    except ValueError:
        return better(name, f"measured at an unreadable time ({measured.at!r})", _MEASURE)
    days = (now - (then if then.tzinfo else then.replace(tzinfo=datetime.UTC))).days
    found = f"measured {then.date().isoformat()}, {max(0, days)} days ago"
    if measured.n_doubtful:
        return better(name, f"{found}, {measured.n_doubtful} of them doubtful", _MEASURE)
    return better(name, found, _MEASURE) if days > _OLD_DAYS else ok(name, found)


def check_terminal(system: System, encoding: str, *, is_terminal: bool) -> Check:
    """Look what answers are drawn on."""
    name = "terminal"
    if not is_terminal:
        return ok(name, "none: the output goes elsewhere")
    kind = system.environment.get("TERM", "")
    if "utf" not in encoding.lower():
        return better(name, f"{encoding}: not every character can be shown", "export LANG=C.UTF-8")
    if kind in ("", "dumb"):
        return better(
            name, "one that draws nothing: answers come as plain text", "export TERM=xterm-256color"
        )
    return ok(name, f"{kind}, {encoding}")
