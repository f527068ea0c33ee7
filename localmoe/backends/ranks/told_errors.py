"""Errors of one rank, told to another."""

from __future__ import annotations

from typing import Any

from localmoe.errors import (
    BudgetError,
    ContextFullError,
    EngineError,
    ExpertReadError,
    InterruptedDecodeError,
    LocalMoeError,
    ModelError,
    ModelFormatError,
    ModelNotFoundError,
    SettingsError,
    UnsupportedModelError,
)


class OtherRankError(EngineError):
    """Another rank could not do its part of a step: its own error says why."""


_KINDS: dict[str, type[LocalMoeError]] = {
    kind.__name__: kind
    for kind in (
        *(BudgetError, ContextFullError, EngineError, InterruptedDecodeError, ModelError),
        *(ModelFormatError, ModelNotFoundError, OtherRankError, SettingsError),
        UnsupportedModelError,
    )
}


def told(error: LocalMoeError) -> dict[str, Any]:
    """Return what JSON can hold of an error."""
    found = {"kind": type(error).__name__, "text": str(error)}
    if isinstance(error, ExpertReadError):
        return {**found, "at": [error.path, error.offset, error.nbytes, error.errno]}
    return found


def heard(said: dict[str, Any], where: str) -> LocalMoeError:
    """Return the error that was told, of the same kind; its message begins with `where`."""
    text = f"{where}: {said['text']}"
    if said["kind"] == "ExpertReadError":
        path, offset, nbytes, number = said["at"]
        found = ExpertReadError(path, offset, nbytes, OSError(number, "") if number else None)
        found.args = (text,)
        return found
    return _KINDS.get(said["kind"], EngineError)(text)
