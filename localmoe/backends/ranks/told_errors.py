"""Errors of one rank, told to another."""

from __future__ import annotations

from typing import Any

import localmoe.errors as errors
from localmoe.errors import EngineError, ExpertReadError, LocalMoeError


class OtherRankError(EngineError):
    """Another rank could not do its part of a step: its own error says why."""


def told(error: LocalMoeError) -> dict[str, Any]:
    """Return what JSON can hold of an error."""
    found = {"kind": type(error).__name__, "text": str(error)}
    if isinstance(error, ExpertReadError):
        return {**found, "at": [error.path, error.offset, error.nbytes, error.errno]}
    return found


def heard(said: dict[str, Any], where: str) -> LocalMoeError:
    """Return the error that was told, of the same kind; its message begins with `where`."""
    text = f"{where}: {said['text']}"
    if said["kind"] == "OtherRankError":
        return OtherRankError(text)
    if said["kind"] == "ExpertReadError":
        path, offset, nbytes, number = said["at"]
        found = ExpertReadError(path, offset, nbytes, OSError(number, "") if number else None)
        found.args = (text,)
        return found
    kind = getattr(errors, said["kind"], None)
    if isinstance(kind, type) and issubclass(kind, LocalMoeError):
        return kind(text)
    return EngineError(text)
