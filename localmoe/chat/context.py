"""The tokens in an engine's context, and how to turn them into other ones with little work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from localmoe.backends.base import Engine, FloatArray, Logits
from localmoe.errors import EngineError

_TAIL_TOKENS = 8
"""More than what templates write between the last question and the answer, and then may drop."""


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

    def adopt(self, tokens: Sequence[int], restore: Callable[[], None]) -> None:
        """Let `restore` fill the engine; `tokens` are what it then holds.

        Raises what `restore` raises, and EngineError where the numbers do not agree; the engine is
        then emptied, since nobody knows what it holds.
        """
        self._tokens.clear()
        try:
            restore()
            if self._engine.position != len(tokens):
                raise EngineError(
                    f"a saved context holds {self._engine.position} tokens where {len(tokens)} "
                    "were expected: it belongs to another conversation"
                )
        except BaseException:
            self._engine.truncate(0)
            raise
        self._tokens = list(tokens)

    def chunks(self, tokens: Sequence[int]) -> list[list[int]]:
        """Cut tokens into what is decoded at once; `mark` is worth calling before the last piece.

        Where the engine cannot rewind, the last piece is a few tokens long: what a template writes
        before an answer may be gone from the prompt of the next turn.
        """
        length = self._engine.plan.prefill_chunk_tokens
        end = len(tokens)
        if not self._engine.can_rewind and end > _TAIL_TOKENS:
            end -= _TAIL_TOKENS
        cuts = [*range(0, end, length), *range(end, len(tokens), length)]
        return [list(tokens[a:b]) for a, b in pairwise([*cuts, len(tokens)])]

    def mark(self) -> None:
        """Let the engine remember this position, if it needs that to come back to it."""
        self._engine.mark()

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
