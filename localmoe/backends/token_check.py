"""What every engine asks of the tokens that it is given."""

from __future__ import annotations

from collections.abc import Sequence

from localmoe.backends.base import Engine
from localmoe.errors import ContextFullError, EngineError


def check_tokens(engine: Engine, tokens: Sequence[int]) -> None:
    """Raise EngineError for tokens that are none, ContextFullError for more than there is room."""
    n_vocab, context_tokens = engine.tokenizer.n_vocab, engine.plan.context_tokens
    if not tokens:
        raise EngineError("decode needs at least one token")
    if min(tokens) < 0 or max(tokens) >= n_vocab:
        raise EngineError(f"token ids must lie in 0 to {n_vocab - 1}")
    room = context_tokens - engine.position
    if len(tokens) > room:
        raise ContextFullError(
            f"{len(tokens)} tokens do not fit: the context has {context_tokens} and {room} are "
            "free. Use a larger --context, or start over."
        )
