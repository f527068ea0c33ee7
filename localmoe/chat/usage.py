"""What an answer cost."""

from __future__ import annotations

from dataclasses import dataclass, field

from localmoe.backends.base import Stats


@dataclass(frozen=True)
class Phase:
    """Tokens that went through the engine in one phase, and what that took."""

    tokens: int = 0
    seconds: float = 0.0
    stats: Stats = field(default_factory=Stats)
    """The engine's counters of this phase alone."""

    def __add__(self, other: Phase) -> Phase:
        return Phase(
            self.tokens + other.tokens,
            self.seconds + other.seconds,
            self.stats - (Stats() - other.stats),
        )

    @property
    def tokens_per_second(self) -> float:
        """Speed of the phase; 0 when it did not happen."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    def per_token(self, amount: float) -> float:
        """Return an amount per token of this phase; 0 when it did not happen."""
        return amount / self.tokens if self.tokens else 0.0


@dataclass(frozen=True)
class Usage:
    """One answer, or several added up."""

    answer_tokens: int = 0
    """Tokens said, thoughts and calls of tools included. The first comes from the prefill's logits,
    each further one from a decode."""
    prefill: Phase = field(default_factory=Phase)
    decode: Phase = field(default_factory=Phase)
    reasoning_tokens: int = 0
    """Those of `answer_tokens` that were thoughts."""
    prompt_tokens: int = 0
    """Tokens of the prompt."""
    cached_tokens: int = 0
    """Those of `prompt_tokens` that were in the context already."""

    @property
    def seconds(self) -> float:
        """Time that the engine took for all of it."""
        return self.prefill.seconds + self.decode.seconds

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.answer_tokens + other.answer_tokens,
            self.prefill + other.prefill,
            self.decode + other.decode,
            self.reasoning_tokens + other.reasoning_tokens,
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
        )
