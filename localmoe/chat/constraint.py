"""Answers that a schema or a grammar allows: a mask over logits, before they are sampled."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from localmoe.backends.base import FloatArray, Tokenizer
from localmoe.chat.request import Grammar, JsonSchema
from localmoe.chat.schema import schema_text
from localmoe.errors import ConstraintError, EngineError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_MAX_CHARACTERS = 1_000_000
_REASON_CHARACTERS = 300
_MAX_LEXER_STATES = 50_000
"""Each takes 1 to 2 KB while an answer goes on."""


class Constraint:
    """Follows one answer through a grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def masked(self, logits: FloatArray) -> FloatArray:
        """Return logits [V] with -inf for every token that cannot come next."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        allowed = np.unpackbits(bits, bitorder="little")[: len(logits)].astype(bool)
        if not allowed.any():
            raise EngineError(
                "the grammar allows no token of this model's vocabulary to come next: "
                "ask without it, or with a simpler one"
            )
        return np.where(allowed, logits, np.float32(-np.inf)).astype(np.float32)

    def accept(self, token: int) -> None:
        """Go on with a token that `masked` has left."""
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token)
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise EngineError(
                f"the grammar could not be followed: {_reason(self._matcher.get_error())}. "
                "Ask without it, or with a simpler one"
            )


class Constraints:
    """Makes constraints for a vocabulary, which is read once, when the first one is wanted."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._vocabulary: LLTokenizer | None = None

    def make(self, wanted: JsonSchema | Grammar) -> Constraint:
        """Return a constraint. Raises ConstraintError for what cannot be one."""
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(max_lexer_states=_MAX_LEXER_STATES, verbose_errors=False)
        try:
            vocabulary = self._read_vocabulary()
            matcher = LLMatcher(vocabulary, compiled(wanted), log_level=0, limits=limits)
        except ValueError as error:
            # Such as for half of a surrogate pair.
            raise _refused(wanted, str(error)) from error
        # Much of the work is done for the first mask, and refused there, if at all.
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            raise _refused(wanted, matcher.get_error())
        return Constraint(matcher)

    def _read_vocabulary(self) -> LLTokenizer:
        if self._vocabulary is None:
            from llguidance import LLTokenizer, TokenizerWrapper

            words = Vocabulary(self._tokenizer)
            self._vocabulary = LLTokenizer(
                TokenizerWrapper(words), n_vocab=len(words.tokens), eos_token=words.ends
            )
            # It has its own copy, and large vocabularies take tens of megabytes.
            words.tokens.clear()
        return self._vocabulary


class Vocabulary:
    """A `Tokenizer` as llguidance wants to see it: the bytes of every token, and which end."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        ids = range(tokenizer.n_vocab)
        self.tokens = [tokenizer.token_bytes(token) for token in ids]
        self.special_token_ids = []
        for token in ids:
            if not self.tokens[token]:
                # An empty token would match everywhere.
                self.tokens[token] = tokenizer.token_bytes(token, special=True) or b"<[%d]>" % token
                self.special_token_ids.append(token)
        self.ends = [token for token in ids if tokenizer.is_end(token)]
        if not self.ends:
            raise ConstraintError(
                "the model's vocabulary has no token that ends an answer: a constrained one "
                "would go on for ever"
            )
        self.bos_token_id, self.eos_token_id = tokenizer.bos, self.ends[0]

    def __call__(self, text: str | bytes) -> list[int]:
        """Return tokens whose bytes are those of a text."""
        data = text if isinstance(text, bytes) else text.encode()
        tokens = self._tokenizer.encode(data.decode(errors="replace"), special=False)
        if b"".join(self._tokenizer.token_bytes(token) for token in tokens) == data:
            return tokens
        # Some vocabularies put a space before every text.
        return self._greedy(data)

    def _greedy(self, data: bytes) -> list[int]:
        """Return the longest token that fits at each place; stop where none does."""
        tokens: list[int] = []
        longest = max(map(len, self._by_bytes), default=0)
        while data:
            fitting = (
                n for n in range(min(longest, len(data)), 0, -1) if data[:n] in self._by_bytes
            )
            n = next(fitting, 0)
            if not n:
                return tokens
            tokens.append(self._by_bytes[data[:n]])
            data = data[n:]
        return tokens

    @cached_property
    def _by_bytes(self) -> dict[bytes, int]:
        pieces = ((self._tokenizer.token_bytes(i), i) for i in range(self._tokenizer.n_vocab))
        return {data: token for data, token in pieces if data}


def compiled(wanted: JsonSchema | Grammar) -> str:
    """Return a grammar as llguidance reads it. Raises ConstraintError for what is too long."""
    from llguidance import LLMatcher

    if isinstance(wanted, Grammar):
        _check_length(wanted.text, wanted)
        if wanted.kind == "regex":
            return LLMatcher.grammar_from_regex(wanted.text)
        return LLMatcher.grammar_from_lark(wanted.text)
    text = schema_text(wanted.schema)
    _check_length(text, wanted)
    return LLMatcher.grammar_from_json_schema(text)


def inline_rules(wanted: JsonSchema | Grammar) -> tuple[str, str]:
    """Return what is wanted as a term for a larger Lark grammar, and the rules that it needs."""
    if isinstance(wanted, JsonSchema):
        return f"%json {schema_text(wanted.schema)}", ""
    if wanted.kind == "regex":
        escaped = re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\\/", wanted.text)
        return f"/{escaped}/", ""
    return "answer", re.sub(r"\bstart\b(?=\s*[:\[])", "answer", wanted.text) + "\n"


def _check_length(text: str, wanted: JsonSchema | Grammar) -> None:
    if len(text) > _MAX_CHARACTERS:
        raise ConstraintError(
            f"the {_kind(wanted)} has {len(text)} characters; at most {_MAX_CHARACTERS} are taken"
        )


def _refused(wanted: JsonSchema | Grammar, reason: str) -> ConstraintError:
    return ConstraintError(f"the {_kind(wanted)} cannot constrain an answer: {_reason(reason)}")


def _kind(wanted: JsonSchema | Grammar) -> str:
    if isinstance(wanted, JsonSchema):
        return "JSON schema"
    return "grammar" if wanted.kind == "lark" else "regular expression"


def _reason(text: str) -> str:
    words = " ".join(text.replace("<non-verbose/>", "").split())
    return words if len(words) <= _REASON_CHARACTERS else f"{words[:_REASON_CHARACTERS]}..."
