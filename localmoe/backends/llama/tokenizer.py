"""The model's own tokenizer, as llama.cpp implements it."""

from __future__ import annotations

import ctypes as C

from localmoe.backends.llama.bindings import L
from localmoe.errors import ChatError, EngineError

_NO_TOKEN = -1
_MAX_PIECES = 1 << 14
"""A whole vocabulary would take tens of megabytes, of which the plan knows nothing."""


class LlamaTokenizer:
    """Implements `backends.base.Tokenizer` over a llama.cpp vocabulary."""

    def __init__(self, model: int) -> None:
        self._open_vocab: int | None = L.llama_model_get_vocab(model)
        self._n_vocab = int(L.llama_vocab_n_tokens(self._vocab))
        self._pieces: dict[tuple[int, bool], bytes] = {}

    def close(self) -> None:
        """Let go of the vocabulary, which goes with the model; `n_vocab` stays."""
        self._open_vocab = None

    @property
    def _vocab(self) -> int:
        if self._open_vocab is None:
            raise EngineError("the engine of this tokenizer is closed: load the model again")
        return self._open_vocab

    @property
    def n_vocab(self) -> int:
        """Number of tokens."""
        return self._n_vocab

    @property
    def bos(self) -> int | None:
        """The token that starts a text."""
        return _token(L.llama_vocab_bos(self._vocab))

    @property
    def eos(self) -> int | None:
        """The token that ends a text."""
        return _token(L.llama_vocab_eos(self._vocab))

    @property
    def add_bos(self) -> bool:
        """Whether plain text should start with `bos`."""
        return bool(L.llama_vocab_get_add_bos(self._vocab))

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return token ids; no bos is added. Raises ChatError for text that it cannot represent."""
        data = text.encode("utf-8", errors="replace")
        room = len(data) + 16
        while True:
            tokens = (C.c_int32 * room)()
            n = int(L.llama_tokenize(self._vocab, data, len(data), tokens, room, False, special))
            if n >= 0:
                return list(tokens[:n])
            if -n <= room:
                raise ChatError("the model's tokenizer cannot represent this text")
            room = -n

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        """Return a token's bytes; b"" for a control token unless `special`."""
        key = (token, special)
        piece = self._pieces.get(key)  # once: another thread may forget all of them meanwhile
        if piece is None:
            if len(self._pieces) >= _MAX_PIECES:
                self._pieces.clear()
            piece = self._pieces[key] = self._piece(token, special)
        return piece

    def is_end(self, token: int) -> bool:
        """Whether generation ends with this token."""
        return bool(L.llama_vocab_is_eog(self._vocab, token))

    def _piece(self, token: int, special: bool) -> bytes:
        if not 0 <= token < self._n_vocab:
            raise ChatError(f"token {token} is not one of the model's {self._n_vocab}")
        room = 64
        while True:
            buffer = C.create_string_buffer(room)
            n = int(L.llama_token_to_piece(self._vocab, token, buffer, room, 0, special))
            if n >= 0:
                return buffer.raw[:n]
            room = -n


def _token(number: int) -> int | None:
    return None if number == _NO_TOKEN else int(number)
