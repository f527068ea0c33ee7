"""Probabilities of the tokens of an answer, and which event they belong to."""

from __future__ import annotations

import numpy as np

from localmoe.backends.base import FloatArray, Tokenizer
from localmoe.chat.events import Event, Piece, ReasoningDelta, TextDelta, TokenChance, TokenLogprob


class LogprobLog:
    """Keeps the tokens whose text has not come out yet. `n_top` None: nobody asked."""

    def __init__(self, tokenizer: Tokenizer, n_top: int | None) -> None:
        self._tokenizer, self._n_top = tokenizer, n_top
        self._waiting: list[TokenLogprob] = []

    def note(self, token: int, logits: FloatArray) -> None:
        """Remember a chosen token and the logits [V] that it was chosen from."""
        if self._n_top is None:
            return
        scores = logits.astype(np.float64)
        highest = scores.max()
        scores -= highest + np.log(np.exp(scores - highest).sum())
        n = min(self._n_top, len(scores))
        top = np.argpartition(-scores, n - 1)[:n] if n else np.empty(0, dtype=np.int64)
        top = top[np.argsort(-scores[top], kind="stable")]
        self._waiting.append(
            TokenLogprob(
                self._chance(token, float(scores[token])),
                tuple(self._chance(int(each), float(scores[each])) for each in top),
            )
        )

    def piece(self, event: Event) -> Piece:
        """Return an event with its tokens: the last ones that are as long as its text."""
        if not self._waiting or not isinstance(event, TextDelta | ReasoningDelta):
            return Piece(event)
        missing = len(event.text.encode())
        first = len(self._waiting)
        while first and missing > 0:
            first -= 1
            missing -= len(self._waiting[first].chosen.data)
        tokens = tuple(self._waiting[first:])
        self._waiting.clear()
        return Piece(event, tokens)

    def _chance(self, token: int, logprob: float) -> TokenChance:
        return TokenChance(token, self._tokenizer.token_bytes(token, special=True), logprob)
