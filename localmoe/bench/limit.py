"""What the machine would allow, from what was measured on it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """Lower bounds of the time per token, in seconds. No decoder can beat the larger one."""

    read_seconds: float
    """Bytes read per token over the device's bandwidth."""
    compute_seconds: float | None
    """Time per token when every expert is in memory; None where it could not be measured."""

    @property
    def tokens_per_second(self) -> float | None:
        """The speed of a decoder that reads and computes at the same time, without any loss."""
        if self.compute_seconds is None:
            return None
        return 1 / max(self.read_seconds, self.compute_seconds)

    def fraction(self, tokens_per_second: float) -> float | None:
        """Return how much of the limit a measured speed reached."""
        limit = self.tokens_per_second
        return None if limit is None else tokens_per_second / limit
