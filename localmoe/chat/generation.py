"""One answer: tokens in, events out, with what it cost and why it ended."""

from __future__ import annotations

import codecs
import threading
import time
from collections.abc import Generator as Generates
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from localmoe.backends.base import Engine, FloatArray
from localmoe.chat.constraint import Constraint
from localmoe.chat.context import Context
from localmoe.chat.events import Event, Piece, TextDelta, ToolCallStart
from localmoe.chat.logprobs import LogprobLog
from localmoe.chat.parser import AnswerParser
from localmoe.chat.request import GenerationRequest
from localmoe.chat.sampling import Sampler
from localmoe.chat.stopping import StopTexts
from localmoe.chat.usage import Phase, Usage
from localmoe.errors import InterruptedDecodeError
from localmoe.settings import Progress

Finish = Literal["stop", "length", "context", "tool_calls", "cancelled", "error"]
"""Why it ended: the model ended it or a stop text came, max_tokens, a full context, the model
waits for the results of its calls, somebody cancelled it, a failure."""


@dataclass(frozen=True)
class Prepared:
    """All that an answer needs besides the engine."""

    request: GenerationRequest
    tokens: list[int]
    """The prompt."""
    parser: AnswerParser
    sampler: Sampler
    constraint: Constraint | None
    progress: Progress | None


class Generation(Iterator[Piece]):
    """An iterator over the pieces of an answer; the work is done while iterating.

    Iterate and close in one thread. All attributes are final once the iteration has ended. The
    iteration raises what `Engine.decode` raises, and then `finish` is "error".
    """

    def __init__(self, engine: Engine, context: Context, prepared: Prepared) -> None:
        self.finish: Finish | None = None
        """Why it ended; None while it goes on."""
        self.usage = Usage(prompt_tokens=len(prepared.tokens))
        self.stop_text: str | None = None
        """The stop text that ended it, if one did."""
        self._engine, self._context, self._prepared = engine, context, prepared
        self._stops = StopTexts(prepared.request.stop)
        self._log = LogprobLog(engine.tokenizer, prepared.request.logprobs)
        self._has_calls = False
        self._cancelled = self._is_running = False
        # Held by a signal handler too, which may come while this thread holds it.
        self._lock = threading.RLock()
        self._pieces = self._run()

    def __next__(self) -> Piece:
        return next(self._pieces)

    def close(self) -> None:
        """Stop here. May be called twice. Another thread that iterates needs `cancel` instead."""
        self._pieces.close()
        if self.finish is None:  # it never began
            self.finish = "cancelled"

    def cancel(self) -> None:
        """End the answer before its next token; safe from other threads and signal handlers."""
        with self._lock:
            self._cancelled = True
            # The engine may serve another answer by now.
            if self._is_running:
                self._engine.interrupt()

    def _run(self) -> Generates[Piece, None, None]:
        self._is_running = True
        try:
            logits = self._prefill()
            if logits is not None:
                yield from self._speak(logits)
        except InterruptedDecodeError:
            yield from self._rest()
            self.finish = "cancelled"
        except (GeneratorExit, KeyboardInterrupt):
            self.finish = "cancelled"
            raise
        except BaseException:
            self.finish = "error"
            raise
        finally:
            with self._lock:
                self._is_running = False

    def _prefill(self) -> FloatArray | None:
        """Bring the context to the prompt; return the last logits [V], None if cancelled."""
        tokens, progress = self._prepared.tokens, self._prepared.progress
        rest = self._context.rewind_for(tokens)
        self.usage = replace(self.usage, cached_tokens=len(tokens) - len(rest))
        done = 0
        for chunk in self._context.chunks(rest):
            if progress:
                progress("prompt", done, len(rest))
            if self._cancelled:
                self.finish = "cancelled"
                return None
            done += len(chunk)
            is_last = done == len(rest)
            if is_last:
                self._context.mark()
            with self._measured("prefill"):
                logits = self._context.decode(chunk, "last" if is_last else "none")
        if progress:
            progress("prompt", len(rest), len(rest))
        last: FloatArray = logits[-1]
        return last

    def _speak(self, logits: FloatArray) -> Iterator[Piece]:
        """Choose and decode tokens until there is a reason to stop; yield what they say."""
        # A character may be spread over several tokens.
        utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        parser = self._prepared.parser
        token = self._choose(logits)
        finish: Finish | None = None
        while finish is None:
            if self._cancelled:
                finish = "cancelled"
                break
            is_end = self._engine.tokenizer.is_end(token)
            self._count(is_end)
            text = utf8.decode(self._bytes(token, is_end), final=is_end)
            yield from self._shown(parser.feed(text))
            finish = self._reason_to_stop(is_end)
            if finish is None:
                with self._measured("decode"):
                    logits = self._context.decode([token])[-1]
                token = self._choose(logits)
        yield from self._rest()
        self.finish = "tool_calls" if self._has_calls and finish == "stop" else finish

    def _choose(self, logits: FloatArray) -> int:
        token = self._chosen(logits)
        self._log.note(token, logits)
        return token

    def _chosen(self, logits: FloatArray) -> int:
        sampler, constraint = self._prepared.sampler, self._prepared.constraint
        parser = self._prepared.parser
        if constraint is None or not parser.constrainable:
            return sampler.choose(logits)
        if parser.opening is not None:
            token = sampler.choose(logits)
            data = self._engine.tokenizer.token_bytes(token, special=True)
            if data.decode(errors="replace").strip() == parser.opening:
                return token
        token = sampler.choose(constraint.masked(logits))
        constraint.accept(token)
        return token

    def _bytes(self, token: int, is_end: bool) -> bytes:
        """Return a token's bytes: of control tokens only what the parser looks for."""
        tokenizer = self._engine.tokenizer
        data = b"" if is_end else tokenizer.token_bytes(token)
        if not data and self._prepared.parser.markers:
            shown = tokenizer.token_bytes(token, special=True)
            if shown.decode(errors="replace") in self._prepared.parser.markers:
                return shown
        return data

    def _count(self, is_end: bool) -> None:
        if is_end:
            return
        thought = self._prepared.parser.in_reasoning
        self.usage = replace(
            self.usage,
            answer_tokens=self.usage.answer_tokens + 1,
            reasoning_tokens=self.usage.reasoning_tokens + thought,
        )

    def _reason_to_stop(self, is_end: bool) -> Finish | None:
        if is_end or self._stops.matched is not None:
            return "stop"
        if self._cancelled:
            return "cancelled"
        limit = self._prepared.request.max_tokens
        if limit is not None and self.usage.answer_tokens >= limit:
            return "length"
        return "context" if self._context.room < 1 else None

    def _shown(self, events: list[Event]) -> Iterator[Piece]:
        """Yield events up to a stop text."""
        for event in events:
            if self._stops.matched is not None:
                return
            if isinstance(event, TextDelta):
                text = self._stops.feed(event.text)
                self.stop_text = self._stops.matched
            else:
                text = self._stops.flush()
            if text:
                yield self._log.piece(TextDelta(text))
            if not isinstance(event, TextDelta):
                self._has_calls = self._has_calls or isinstance(event, ToolCallStart)
                yield self._log.piece(event)

    def _rest(self) -> Iterator[Piece]:
        """Yield what was held back, now that nothing follows."""
        yield from self._shown(self._prepared.parser.finish())
        held = self._stops.flush()
        if held:
            yield self._log.piece(TextDelta(held))

    @contextmanager
    def _measured(self, phase: Literal["prefill", "decode"]) -> Iterator[None]:
        """Add the time and the counters of a block to one phase of the usage."""
        stats, length, start = self._engine.stats(), len(self._context), time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            tokens = max(len(self._context) - length, 0)
            spent = Phase(tokens, seconds, self._engine.stats() - stats)
            if phase == "prefill":
                self.usage = replace(self.usage, prefill=self.usage.prefill + spent)
            else:
                self.usage = replace(self.usage, decode=self.usage.decode + spent)
