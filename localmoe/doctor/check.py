"""What a check says: what was found, how good it is, and what mends it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

NOT_HERE = "not on this system"


class Verdict(StrEnum):
    """How good it is."""

    OK = "ok"
    BETTER = "could be better"
    STOPS = "stops run"


@dataclass(frozen=True)
class Check:
    """One line of the page."""

    name: str
    found: str
    verdict: Verdict
    mend: str | None
    """The command that mends it; None only where nothing is to be mended."""


def ok(name: str, found: str) -> Check:
    """Return a check that found nothing to complain of."""
    return Check(name, found, Verdict.OK, None)


def not_here(name: str) -> Check:
    """Return a check that does not apply."""
    return ok(name, NOT_HERE)


def better(name: str, found: str, mend: str) -> Check:
    """Return a check that found something which costs speed or comfort."""
    return Check(name, found, Verdict.BETTER, mend)


def stops(name: str, found: str, mend: str) -> Check:
    """Return a check that found why `localmoe run` would not work."""
    return Check(name, found, Verdict.STOPS, mend)


def runs(checks: list[Check]) -> bool:
    """Whether `localmoe run` would work."""
    return not any(check.verdict is Verdict.STOPS for check in checks)
