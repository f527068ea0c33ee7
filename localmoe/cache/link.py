"""The way between slots in host memory and slots on a device, whose work goes on by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Run(NamedTuple):
    """Bytes that lie together in both memories: where they begin, and how many they are."""

    host: int
    device: int
    nbytes: int


class Copies(Protocol):
    """Copies that were begun together, or before some moment."""

    def done(self) -> bool:
        """Whether all of them have ended."""
        ...

    def wait(self) -> None:
        """Block until all of them have ended."""
        ...


class Link(Protocol):
    """Copies up to a device and down from it, beside what the device computes.

    Nothing here waits, and the three kinds of work run in no order but the one that is asked for.
    """

    def upload(self, run: Run) -> None:
        """Begin a copy to the device, after what was computed before the last `used`."""
        ...

    def uploads(self) -> Copies:
        """Return what stands for all copies to the device so far."""
        ...

    def download(self, runs: Sequence[Run]) -> Copies:
        """Begin copies from the device, after all copies to it so far."""
        ...

    def hold_uploads(self, copies: Copies) -> None:
        """Have copies to the device from now on wait for these."""
        ...

    def order(self, copies: Copies) -> None:
        """Have what is computed from now on wait for these copies."""
        ...

    def used(self) -> None:
        """Have copies to the device from now on wait for what is to be computed up to here."""
        ...
