"""The tokens in an engine's context, and how to turn them into other ones with little work."""

from __future__ import annotations

from collections.abc import Sequence

from localmoe.backends.base import Engine, FloatArray, Logits


class Context:
    """Mirrors what an engine holds, through errors and interruptions too.

    Nobody else may decode or truncate while this is in use.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tokens: list[int] = []

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens that the engine holds."""
        return tuple(self._tokens)

    @property
    def room(self) -> int:
        """How many more tokens fit."""
        return self._engine.plan.context_tokens - len(self._tokens)

    def rewind_for(self, tokens: Sequence[int]) -> list[int]:
        """Keep the longest common prefix with `tokens`; return the rest, at least one token."""
        self._agree_with_engine()
        common = 0
        for known, wanted in zip(self._tokens, tokens, strict=False):
            if known != wanted:
                break
            common += 1
        # The last token is decoded again if need be: its logits are what an answer starts from.
        keep = min(common, len(tokens) - 1)
        if keep < len(self._tokens):
            del self._tokens[self._engine.truncate(keep) :]
        return list(tokens[len(self._tokens) :])

    def decode(self, tokens: list[int], logits: Logits = "last") -> FloatArray:
        """Append tokens; see `Engine.decode`. After an error this still mirrors the engine."""
        try:
            result = self._engine.decode(tokens, logits)
        except BaseException:
            self._agree_with_engine()
            raise
        self._tokens.extend(tokens)
        return result

    def _agree_with_engine(self) -> None:
        position = self._engine.position
        if position > len(self._tokens):
            # Interrupted between the engine's decode and our note of it.
            position = self._engine.truncate(len(self._tokens))
        del self._tokens[position:]
