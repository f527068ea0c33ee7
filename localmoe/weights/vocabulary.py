"""Checks a GGUF tokenizer for what would make llama.cpp abort the process instead of failing."""

from __future__ import annotations

import struct

from localmoe.errors import ModelFormatError, UnsupportedModelError
from localmoe.weights.gguf_header import GgufHeader, read_array
from localmoe.weights.gguf_values import LargeArray

MAX_TOKENS = 1 << 20
MAX_TOKENS_NBYTES = 32 << 20

_PREFIX = "tokenizer.ggml."
_BPE = ("gpt2", "gemma4", "whitespace", "hybriddna")
_SPM, _RWKV, _PLAMO = "llama", "rwkv", "plamo2"
_MODELS = (*_BPE, _SPM, _RWKV, _PLAMO)
_IDS = ("bos", "eos", "eot", "eom")
"""Others are rarely used, and often wrong: llama.cpp then takes its own."""


def check_vocabulary(header: GgufHeader) -> int:
    """Return the number of tokens. Raises ModelFormatError, UnsupportedModelError."""
    model = header.metadata.get(_PREFIX + "model")
    if model not in _MODELS:
        raise UnsupportedModelError(
            f"{header.path}: the tokenizer {model!r} is not supported; wanted is one of "
            f"{', '.join(_MODELS)}. Choose another file of this model."
        )
    tokens = header.metadata.get(_PREFIX + "tokens")
    if not isinstance(tokens, LargeArray) or tokens.kind != "str":
        raise ModelFormatError(
            f"{header.path} has no list of tokens ({_PREFIX}tokens). The file is damaged."
        )
    if not 0 < tokens.length <= MAX_TOKENS or tokens.nbytes > MAX_TOKENS_NBYTES:
        raise ModelFormatError(
            f"{header.path} lists {tokens.length} tokens in {tokens.nbytes} bytes; wanted are 1 to "
            f"{MAX_TOKENS} in at most {MAX_TOKENS_NBYTES}. The file is damaged."
        )
    for name in ("scores", "token_type"):
        _check_companion(header, name, tokens.length)
    for name in _IDS:
        _check_id(header, f"{_PREFIX}{name}_token_id", tokens.length)
    _check_bytes(header, model, _read_words(header, tokens))
    return tokens.length


def _check_companion(header: GgufHeader, name: str, n_tokens: int) -> None:
    """Refuse a list beside the tokens that is shorter than theirs."""
    value = header.metadata.get(_PREFIX + name)
    if value is None:
        return
    length: int | None
    if isinstance(value, LargeArray):
        length = value.length
    else:
        length = len(value) if isinstance(value, tuple) else None
    if length is None or length < n_tokens:
        found = "a single value" if length is None else f"{length} elements"
        raise ModelFormatError(
            f"{header.path}: {_PREFIX}{name} should have {n_tokens} elements, as many as there "
            f"are tokens, but is {found}. The file is damaged."
        )


def _check_id(header: GgufHeader, key: str, n_tokens: int) -> None:
    value = header.metadata.get(key)
    if value is not None and (type(value) is not int or not 0 <= value < n_tokens):
        raise ModelFormatError(
            f"{header.path}: {key} should be below the {n_tokens} tokens, but is {value!r}. "
            "The file is damaged, or made by another program."
        )


def _read_words(header: GgufHeader, tokens: LargeArray) -> set[bytes]:
    """Return the tokens as llama.cpp sees them, and refuse any that it would see twice."""
    raw = read_array(header, tokens)
    words: set[bytes] = set()
    unpack, at = struct.Struct("<Q").unpack_from, 0
    for index in range(tokens.length):
        start = at + 8
        if start > len(raw):
            raise ModelFormatError(f"{header.path} changed while it was read. Try again.")
        at = start + unpack(raw, at)[0]
        word = raw[start:at]
        if not word or b"\0" in word:
            word = word.split(b"\0", 1)[0] or b"[EMPTY_%d]" % index
        words.add(word)
        if len(words) == index:
            raise ModelFormatError(
                f"{header.path} has the token {word[:80]!r} twice. The file is damaged."
            )
    return words


def _check_bytes(header: GgufHeader, model: object, words: set[bytes]) -> None:
    """Refuse a vocabulary that some text would make llama.cpp throw over, or look up forever."""
    if model not in (_SPM, _RWKV):
        return
    for byte in range(256):
        spellings = _spm_spellings(byte) if model == _SPM else (_rwkv_spelling(byte),)
        if words.isdisjoint(spellings):
            raise ModelFormatError(
                f"{header.path}: the tokenizer has no token {spellings[0].decode()}, so not every "
                "text can be encoded. The file is damaged."
            )


def _spm_spellings(byte: int) -> tuple[bytes, ...]:
    code = b"<0x%02X>" % byte
    return (code, bytes((byte,))) if byte else (code,)


def _rwkv_spelling(byte: int) -> bytes:
    """Return the byte as its vocabulary writes it: as in a Python literal, without the quotes."""
    return repr(bytes((byte,)))[2:-1].encode()
