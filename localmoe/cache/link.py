"""The way from slots in host memory to slots on a device, whose work goes on by itself."""

from __future__ import annotations

from typing import Protocol


class Copies(Protocol):
    """The copies that had been begun at some moment."""

    def done(self) -> bool:
        """Whether all of them have ended."""
        ...

    def wait(self) -> None:
        """Block until all of them have ended."""
        ...


class Link(Protocol):
    """Copies from host memory to a device, beside what the device computes.

    Nothing here waits, and the two kinds of work run in no order but the one that is asked for.
    """

    def copy(self, source: int, target: int, nbytes: int) -> None:
        """Begin a copy, from and to these places in the two memories.

        It waits for what was computed before the last `used`.
        """
        ...

    def begun(self) -> Copies:
        """Return what stands for all copies so far."""
        ...

    def order(self, copies: Copies) -> None:
        """Have what is computed from now on wait for these copies."""
        ...

    def used(self) -> None:
        """Have copies from now on wait for what is to be computed up to here."""
        ...
