"""An engine that says exactly what a script tells it to, whatever template wrote the prompt.

Bytes are tokens, as with FakeEngine; markup such as <think> can be one control token each. The
logits are graded, so that a constraint can choose another token than the script's.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fake_engine import BOS, EOS, IM_END, IM_START, SPECIAL, ByteTokenizer, FakeEngine
from localmoe.backends.base import FloatArray, Logits
from localmoe.errors import EngineError, InterruptedDecodeError

Script = Callable[[str], str | bytes] | Sequence[str | bytes]

__all__ = ["BOS", "EOS", "IM_END", "IM_START", "MarkupTokenizer", "ScriptedEngine"]


class MarkupTokenizer(ByteTokenizer):
    """Every byte is a token; ChatML's four control tokens follow, then one for each of `markup`."""

    def __init__(
        self, markup: Iterable[str] = (), *, ends: Iterable[str] = (), add_bos: bool = False
    ) -> None:
        """`ends`: those of `markup` that end an answer, besides </s> and <|im_end|>."""
        super().__init__(add_bos=add_bos)
        self._special = (*SPECIAL, *markup)
        self._ends = {EOS, IM_END, *(256 + self._special.index(text) for text in ends)}
        self.n_vocab = 256 + len(self._special)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        tokens: list[int] = []
        markers = sorted(self._special, key=len, reverse=True) if special else []
        while text:
            marker = next((m for m in markers if text.startswith(m)), None)
            if marker:
                tokens.append(256 + self._special.index(marker))
            else:
                tokens.extend(text[0].encode())
            text = text[len(marker or "x") :]
        return tokens

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        if token < 256:
            return bytes([token])
        return self._special[token - 256].encode() if special else b""

    def is_end(self, token: int) -> bool:
        return token in self._ends


@dataclass
class ScriptedEngine(FakeEngine):
    """Implements `backends.base.Engine`.

    `script`: the answers to one prompt after the other, or a function from the prompt's text to its
    answer; markup in it becomes its tokens. After an answer the end token follows. Needs a new
    prompt to differ from the old one and its answer by more than one token at the end.
    """

    script: Script = ()
    tokenizer: ByteTokenizer = field(default_factory=MarkupTokenizer)
    pause: threading.Event | None = None
    """While it is not set, a decode waits; `interrupt` ends the wait."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.prompts: list[str] = []
        """The texts of all prompts that were read to their end."""
        self.decoding = threading.Event()
        """Set once a decode has begun."""
        self._interrupted = threading.Event()
        self._answer: list[int] = []
        self._n_said = -1
        """Tokens of the answer in the context; -1: a prompt is being read."""

    def decode(self, tokens: list[int], logits: Logits = "last") -> FloatArray:
        self._wait()
        begins = self._n_said < 0 or len(tokens) > 1 or logits != "last"
        super().decode(tokens, "none")
        if logits == "none":
            self._n_said = -1
            return np.empty((0, self.tokenizer.n_vocab), dtype=np.float32)
        if begins:
            self._begin()
        else:
            self._n_said += 1
        row = np.linspace(1, 0, self.tokenizer.n_vocab, dtype=np.float32)
        # Where something else has to be said, it is brief.
        row[list(b'"}')] = 10, 9
        ended = self._n_said >= len(self._answer)
        row[IM_END if ended else self._answer[self._n_said]] = 20
        return np.repeat(row[None], len(tokens) if logits == "all" else 1, axis=0)

    def _begin(self) -> None:
        self.prompts.append(self.text)
        said = self.script(self.text) if callable(self.script) else self._next_answer()
        self._answer = self.tokenizer.encode(said) if isinstance(said, str) else list(said)
        self._n_said = 0

    def _next_answer(self) -> str | bytes:
        assert not callable(self.script)
        n = len(self.prompts)
        assert n <= len(self.script), f"the script has no answer to prompt {n}: {self.text[-200:]}"
        return self.script[n - 1]

    def _wait(self) -> None:
        self._interrupted.clear()
        self.decoding.set()
        while self.pause and not self.pause.wait(0.001):
            if self._interrupted.is_set():
                raise InterruptedDecodeError("the decode was interrupted")

    def interrupt(self) -> None:
        self._interrupted.set()

    def truncate(self, n: int) -> int:
        self._n_said = -1
        return super().truncate(n)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.tokens))

    def restore(self, path: Path) -> None:
        try:
            self.tokens = [int(token) for token in json.loads(path.read_text())]
        except (OSError, ValueError) as error:
            raise EngineError(f"{path} holds no state of this engine: {error}") from error
        self._n_said = -1
