"""A conversation with an engine: messages in, pieces of text out."""

from __future__ import annotations

import codecs
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Literal

from localmoe.backends.base import Engine, FloatArray
from localmoe.chat.answer import Answer, Finish
from localmoe.chat.context import Context
from localmoe.chat.sampling import Sampler
from localmoe.chat.templates import Message, Renderer, special_text
from localmoe.chat.usage import Phase, Usage
from localmoe.errors import ChatError, ContextFullError, InterruptedDecodeError
from localmoe.settings import Progress

_LEAST_ANSWER_TOKENS = 256
"""A conversation that leaves less room than this for an answer forgets its oldest turns."""


class ChatSession:
    """History, and the context that goes with it. One answer at a time, not thread safe.

    Nobody else may use the engine while the session does.
    """

    def __init__(
        self,
        engine: Engine,
        renderer: Renderer,
        *,
        sampler: Sampler | None = None,
        system: str | None = None,
        max_tokens: int | None = None,
    ) -> None:
        self.system = system
        """The system message; a change counts from the next question on."""
        self.usage = Usage()
        """All answers so far, added up."""
        self._engine = engine
        self._renderer = renderer
        self._sampler = sampler or Sampler()
        self._max_tokens = max_tokens
        self._context = Context(engine)
        self._turns: list[Message] = []
        self._current: Answer | None = None
        self._cancelled = False

    @property
    def history(self) -> tuple[Message, ...]:
        """The conversation: the system message, then questions and answers in turn."""
        return self._conversation(self._turns)

    def clear(self) -> None:
        """Forget everything but the system message."""
        if self._current:
            self._current.close()
        self._turns.clear()

    def ask(self, text: str, progress: Progress | None = None) -> Answer:
        """Return the answer to a text; the work is done while iterating over it.

        `progress` hears of the stage "prompt", in tokens. An answer that was cut short stays in the
        history as far as it was said; one that never started is forgotten with its question.
        The iteration raises ChatError, ContextFullError, ExpertReadError; the session stays usable.
        """
        if self._current:
            self._current.close()
        self._cancelled = False
        self._current = Answer(partial(self._run, text, progress))
        return self._current

    def cancel(self) -> None:
        """End the current answer before its next token; safe to call from a signal handler."""
        self._cancelled = True
        self._engine.interrupt()

    def _run(
        self, text: str, progress: Progress | None, answer: Answer
    ) -> Generator[str, None, None]:
        before = list(self._turns)
        try:
            tokens = self._fit(Message("user", text), answer)
            logits = self._prefill(tokens, answer, progress)
            if logits is not None:
                yield from self._speak(logits, answer)
        except InterruptedDecodeError:
            answer.finish = "cancelled"
        except (GeneratorExit, KeyboardInterrupt):
            answer.finish = "cancelled"
            raise
        except BaseException:
            answer.finish = "error"
            raise
        finally:
            if answer.text or answer.finish in ("end", "length", "context"):
                self._turns.append(Message("assistant", answer.text))
            else:
                self._turns = before
            self.usage += answer.usage

    def _fit(self, question: Message, answer: Answer) -> list[int]:
        """Add a question, forget old turns where there is no room; return the prompt's tokens."""
        size = self._engine.plan.context_tokens
        turns = [*self._turns, question]
        tokens = self._encode(turns)
        wanted_room = min(self._max_tokens or size, _LEAST_ANSWER_TOKENS, size // 4)
        dropped = 0
        if size - len(tokens) < wanted_room:
            # More than is needed now, so that the next turns find their prefix in the context.
            while len(turns) > 1 and size - len(tokens) < size // 4:
                del turns[:2]
                dropped += 1
                tokens = self._encode(turns)
        if len(tokens) >= size:
            raise ContextFullError(
                f"the prompt has {len(tokens)} tokens and the context {size}, of which the answer "
                f"needs some: shorten the prompt, or give --context {len(tokens) + 512} or more"
            )
        self._turns = turns
        answer.dropped_turns = dropped
        return tokens

    def _encode(self, turns: list[Message]) -> list[int]:
        tokenizer = self._engine.tokenizer
        text = self._renderer.render(self._conversation(turns))
        tokens = tokenizer.encode(text, special=True)
        if tokenizer.add_bos and tokenizer.bos is not None:
            bos_text = special_text(tokenizer, tokenizer.bos)
            # Most templates write the bos themselves.
            if not (bos_text and text.startswith(bos_text)):
                tokens.insert(0, tokenizer.bos)
        if not tokens:
            raise ChatError("the prompt is empty: give it at least one word")
        return tokens

    def _conversation(self, turns: list[Message]) -> tuple[Message, ...]:
        system = (Message("system", self.system),) if self.system else ()
        return (*system, *turns)

    def _prefill(
        self, tokens: list[int], answer: Answer, progress: Progress | None
    ) -> FloatArray | None:
        """Bring the context to these tokens; return the last logits [V], None if cancelled."""
        rest = self._context.rewind_for(tokens)
        done = 0
        for chunk in self._context.chunks(rest):
            if progress:
                progress("prompt", done, len(rest))
            if self._cancelled:
                answer.finish = "cancelled"
                return None
            done += len(chunk)
            is_last = done == len(rest)
            if is_last:
                self._context.mark()
            with self._measured(answer, "prefill"):
                logits = self._context.decode(chunk, "last" if is_last else "none")
        if progress:
            progress("prompt", len(rest), len(rest))
        last: FloatArray = logits[-1]
        return last

    def _speak(self, logits: FloatArray, answer: Answer) -> Iterator[str]:
        """Choose and decode tokens until there is a reason to stop; yield their text."""
        tokenizer = self._engine.tokenizer
        # A character may be spread over several tokens.
        utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        token = self._sampler.choose(logits)
        while True:
            if self._cancelled:
                answer.finish = "cancelled"
                return
            is_end = tokenizer.is_end(token)
            piece = utf8.decode(b"" if is_end else tokenizer.token_bytes(token), final=is_end)
            if not is_end:
                answer.usage = replace(answer.usage, answer_tokens=answer.usage.answer_tokens + 1)
            if piece:
                answer.text += piece
                yield piece
            answer.finish = "end" if is_end else self._reason_to_stop(answer)
            if answer.finish:
                return
            with self._measured(answer, "decode"):
                token = self._sampler.choose(self._context.decode([token])[-1])

    def _reason_to_stop(self, answer: Answer) -> Finish | None:
        if self._cancelled:
            return "cancelled"
        if self._max_tokens is not None and answer.usage.answer_tokens >= self._max_tokens:
            return "length"
        return "context" if self._context.room < 1 else None

    @contextmanager
    def _measured(self, answer: Answer, phase: Literal["prefill", "decode"]) -> Iterator[None]:
        """Add the time and the counters of a block to one phase of the answer's usage."""
        stats, length, start = self._engine.stats(), len(self._context), time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            tokens = max(len(self._context) - length, 0)
            spent = Phase(tokens, seconds, self._engine.stats() - stats)
            usage = answer.usage
            if phase == "prefill":
                answer.usage = replace(usage, prefill=usage.prefill + spent)
            else:
                answer.usage = replace(usage, decode=usage.decode + spent)
