"""Teacher forcing: feed a fixed stream token by token, and time each."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from localmoe.backends.base import FloatArray

Decode = Callable[[list[int]], FloatArray]
"""Appends tokens and returns the logits of the last, float32 [1, V]."""


@dataclass(frozen=True)
class Forced:
    """What one pass over the stream took and gave."""

    seconds: float
    token_seconds: tuple[float, ...]
    logits_sha256: dict[int, str]
    """By number of tokens decoded: the logits after that many, as float32 bytes."""

    @property
    def tokens_per_second(self) -> float:
        """Speed over the whole pass."""
        return len(self.token_seconds) / self.seconds


def force(
    decode: Decode,
    tokens: Sequence[int],
    hash_after: Collection[int] = (),
    on_token: Callable[[int], None] = lambda _: None,
) -> Forced:
    """Decode one token at a time; hash the last logits, and those after so many tokens.

    `on_token` is told how many are done; its time is counted in `seconds`.
    """
    kept: dict[int, FloatArray] = {}
    marks = [time.perf_counter()]
    for done, token in enumerate(tokens, start=1):
        logits = decode([token])
        marks.append(time.perf_counter())
        if done in hash_after or done == len(tokens):
            kept[done] = logits
        on_token(done)
    return Forced(
        seconds=marks[-1] - marks[0],
        token_seconds=tuple(b - a for a, b in zip(marks, marks[1:], strict=False)),
        logits_sha256={done: sha256_of(logits) for done, logits in kept.items()},
    )


def sha256_of(logits: FloatArray) -> str:
    """Return the hash of the values' bytes."""
    return hashlib.sha256(logits.tobytes()).hexdigest()


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the smallest sample that so large a share of all does not exceed."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
