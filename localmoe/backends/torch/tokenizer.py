"""A checkpoint's tokenizer, through transformers: text to token ids, token ids to bytes."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from localmoe.backends.torch.quiet import quietly
from localmoe.errors import UnsupportedModelError

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


class TorchTokenizer:
    """Implements `backends.base.Tokenizer`."""

    def __init__(self, folder: Path, n_vocab: int, ends: frozenset[int]) -> None:
        """`n_vocab`: how many logits the model gives. Raises UnsupportedModelError."""
        try:
            with quietly():  # of the configuration, which is none of a tokenizer's business
                self._tokenizer: Any = AutoTokenizer.from_pretrained(
                    folder, trust_remote_code=False, local_files_only=True
                )
        except Exception as error:
            raise UnsupportedModelError(
                f"transformers cannot use the tokenizer in {folder}: "
                f"{str(error).strip()[:300] or type(error).__name__}. A checkpoint has a "
                "tokenizer.json; code that comes with it is not run"
            ) from error
        self._n_vocab = n_vocab
        eos = self._tokenizer.eos_token_id
        self._ends = ends | (frozenset() if eos is None else {int(eos)})
        self._special = frozenset(int(token) for token in self._tokenizer.all_special_ids)
        self._added = {int(t): str(a) for t, a in self._tokenizer.added_tokens_decoder.items()}
        self._is_byte_level = self._find_byte_level()
        self._adds_bos = self._find_bos()

    @property
    def chat_template(self) -> str | None:
        """The checkpoint's own Jinja template."""
        template = self._tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        return template if isinstance(template, str) else None

    @property
    def n_vocab(self) -> int:
        """Number of tokens."""
        return self._n_vocab

    @property
    def bos(self) -> int | None:
        """The token that starts a text, if the model has one."""
        token = self._tokenizer.bos_token_id
        return None if token is None else int(token)

    @property
    def eos(self) -> int | None:
        """The token that ends a text, if the model has one."""
        token = self._tokenizer.eos_token_id
        return int(token) if token is not None else min(self._ends, default=None)

    @property
    def add_bos(self) -> bool:
        """Whether plain text should start with `bos`."""
        return self._adds_bos

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return token ids, no bos added; see `backends.base.Tokenizer`."""
        found = self._tokenizer.encode(
            text, add_special_tokens=False, split_special_tokens=not special
        )
        return [int(token) for token in found]

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        """Return a token's bytes; b"" for a control token unless `special`."""
        if token in self._special and not special:
            return b""
        if token in self._added:
            return self._added[token].encode()
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:
            return b""  # the model has more logits than the tokenizer has tokens
        if self._is_byte_level:
            table = _bytes_of_characters()
            return bytes(table[c] for c in piece) if all(c in table for c in piece) else b""
        byte = _BYTE.fullmatch(piece)
        return bytes([int(byte[1], 16)]) if byte else piece.replace(_SPACE, " ").encode()

    def is_end(self, token: int) -> bool:
        """Whether generation ends with this token."""
        return token in self._ends

    def _find_byte_level(self) -> bool:
        """Whether pieces are written in characters that stand for bytes, as GPT-2's are."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        return backend is not None and "ByteLevel" in repr(backend.decoder)

    def _find_bos(self) -> bool:
        bos = self.bos
        return bos is not None and self._tokenizer.encode("a")[:1] == [bos]


@cache
def _bytes_of_characters() -> dict[str, int]:
    """Return the table of byte-level BPE: printable bytes are themselves, others lie above 255."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    table = {chr(byte): byte for byte in plain}
    table |= {chr(256 + place): byte for place, byte in enumerate(others)}
    return table
