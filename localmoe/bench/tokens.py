"""The token stream that every decode benchmark is forced along."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from localmoe.backends.base import Tokenizer
from localmoe.errors import SettingsError

_EXPONENT = 1.2
_DRAWS_PER_TOKEN = 10
_RESERVED = 2
"""Ids up to this one are left out: many vocabularies keep their control tokens there."""


def token_stream(count: int, n_vocab: int) -> list[int]:
    """Return the first `count` ids of a fixed stream with 2 < id < n_vocab.

    Zipf-distributed: a few ids come back all the time, as words do in a text. The same vocabulary
    gives the same stream on every machine. Raises ValueError for a vocabulary of 3 ids or fewer.
    """
    if n_vocab <= _RESERVED + 1:
        raise ValueError(f"a vocabulary of {n_vocab} tokens has none to choose from")
    rng = np.random.default_rng(0)
    tokens: list[int] = []
    while len(tokens) < count:
        drawn = rng.zipf(_EXPONENT, _DRAWS_PER_TOKEN * count)
        tokens += drawn[(drawn > _RESERVED) & (drawn < n_vocab)].tolist()
    return tokens[:count]


def text_tokens(path: Path, count: int, tokenizer: Tokenizer) -> list[int]:
    """Return the first `count` tokens of a text, behind the token that starts one.

    Raises SettingsError for a file that cannot be read, or is too short.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the text {path} cannot be read: {error}") from error
    start = [tokenizer.bos] if tokenizer.add_bos and tokenizer.bos is not None else []
    tokens = start + tokenizer.encode(text, special=False)
    if len(tokens) < count:
        raise SettingsError(
            f"the text {path} has {len(tokens)} tokens, and {count} are wanted: use a longer one, "
            "or fewer tokens."
        )
    return tokens[:count]
