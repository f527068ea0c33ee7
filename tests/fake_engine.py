"""An engine without a model: bytes for tokens, and answers that follow from the context alone.

What it says is `reply(prompt)`, read from the tokens that it holds. So a context that is not what
the session believes shows as a wrong answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from localmoe.backends.base import FloatArray, Logits, Stats
from localmoe.errors import ContextFullError
from localmoe.planning.plan import MemoryPlan

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
BOS, EOS, IM_START, IM_END = range(256, 260)
ASSISTANT = [IM_START, *b"assistant\n"]


class ByteTokenizer:
    """Every byte is a token; four control tokens follow."""

    n_vocab = 260
    bos = BOS
    eos = EOS

    def __init__(self, *, add_bos: bool = False, chatml: bool = True) -> None:
        self.add_bos = add_bos
        self._special = SPECIAL if chatml else SPECIAL[:2]

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        tokens: list[int] = []
        while text:
            marker = next((m for m in self._special if special and text.startswith(m)), None)
            if marker:
                tokens.append(256 + SPECIAL.index(marker))
            else:
                tokens.extend(text[0].encode())
            text = text[len(marker or "x") :]
        return tokens

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        if token < 256:
            return bytes([token])
        return SPECIAL[token - 256].encode() if special else b""

    def is_end(self, token: int) -> bool:
        return token in (EOS, IM_END)


def echo(prompt: str) -> bytes:
    """Say the last question again."""
    return prompt.rpartition("user\n")[2].partition("<|im_end|>")[0].encode()


@dataclass
class FakeEngine:
    """Implements `backends.base.Engine`."""

    reply: Callable[[str], bytes] = echo
    context_tokens: int = 4096
    prefill_chunk_tokens: int = 64
    slots: int = 5
    experts: int = 20
    """0: a dense model."""
    rewind_step: int = 1
    """It can rewind to multiples of this only; 0: to marks and the start only."""
    architecture: str = "fake"
    chat_template: str | None = None
    generation_defaults: dict[str, float] = field(default_factory=dict)
    before_decode: Callable[[FakeEngine, list[int]], None] = lambda engine, tokens: None
    """Called before each decode; may raise."""
    tokenizer: ByteTokenizer = field(default_factory=ByteTokenizer)
    tokens: list[int] = field(default_factory=list)
    load_seconds: float = 0.25

    def __post_init__(self) -> None:
        self.n_decodes = 0
        self.marks: list[int] = []
        self.decoded: list[int] = []
        """Sizes of the batches that were decoded."""

    @property
    def plan(self) -> MemoryPlan:
        size, chunk = self.context_tokens, self.prefill_chunk_tokens
        return MemoryPlan(10**9, 1, 1, 1, 1, 10, self.slots, self.experts, size, chunk)

    @property
    def can_rewind(self) -> bool:
        return self.rewind_step == 1

    @property
    def position(self) -> int:
        return len(self.tokens)

    @property
    def text(self) -> str:
        """What the context holds."""
        pieces = (self.tokenizer.token_bytes(t, special=True) for t in self.tokens)
        return b"".join(pieces).decode(errors="replace")

    def decode(self, tokens: list[int], logits: Logits = "last") -> FloatArray:
        assert tokens, "an empty batch"
        self.before_decode(self, tokens)
        if len(self.tokens) + len(tokens) > self.context_tokens:
            raise ContextFullError("no room")
        self.tokens.extend(tokens)
        self.n_decodes += 1
        self.decoded.append(len(tokens))
        if logits == "none":
            return np.empty((0, self.tokenizer.n_vocab), dtype=np.float32)
        scores = np.full((1, self.tokenizer.n_vocab), -math.inf, dtype=np.float32)
        scores[0, self._next_token()] = 1.0
        return scores

    def _next_token(self) -> int:
        n = len(ASSISTANT)
        split = len(self.tokens)
        while split and self.tokens[max(split - n, 0) : split] != ASSISTANT:
            split -= 1
        pieces = [self.tokenizer.token_bytes(t, special=True) for t in self.tokens[:split]]
        answer = self.reply(b"".join(pieces).decode(errors="replace"))
        said = len(self.tokens) - split
        return answer[said] if said < len(answer) else IM_END

    def interrupt(self) -> None:
        """Do nothing: every decode ends at once."""

    def mark(self) -> None:
        if not self.rewind_step:
            self.marks = [*self.marks, len(self.tokens)][-2:]

    def truncate(self, n: int) -> int:
        if n < len(self.tokens):
            self.marks = [mark for mark in self.marks if mark <= n]
            n = n - n % self.rewind_step if self.rewind_step else max(self.marks, default=0)
        del self.tokens[n:]
        return len(self.tokens)

    def save(self, path: Path) -> None:
        raise NotImplementedError

    def restore(self, path: Path) -> None:
        raise NotImplementedError

    def stats(self) -> Stats:
        n = sum(self.decoded)
        return Stats(n, 3 * n, n, 100 * n, 0.001 * n, 0.01 * n)

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
