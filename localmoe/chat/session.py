"""A conversation with an engine: messages in, pieces of text out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from localmoe.backends.base import Engine
from localmoe.chat.answer import Answer
from localmoe.chat.dialect import Dialect
from localmoe.chat.events import Event, ReasoningDelta, TextDelta
from localmoe.chat.generation import Generation
from localmoe.chat.generator import Generator as Answers
from localmoe.chat.messages import Message
from localmoe.chat.request import GenerationRequest, Grammar, JsonSchema, Thoughts
from localmoe.chat.sampling import Sampler
from localmoe.chat.templates import Renderer
from localmoe.chat.usage import Usage
from localmoe.settings import Progress

_LEAST_ANSWER_TOKENS = 256
"""A conversation that leaves less room than this for an answer forgets its oldest turns."""

Listener = Callable[[Event], None]


@dataclass(frozen=True)
class AnswerOptions:
    """What every answer of a session is asked for with; see `GenerationRequest`."""

    max_tokens: int | None = None
    response_format: JsonSchema | Grammar | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    thoughts: Thoughts | None = None


class ChatSession:
    """History, and the context that goes with it. One answer at a time, not thread safe.

    Nobody else may use the engine while the session does.
    """

    def __init__(
        self,
        engine: Engine,
        dialect: Dialect | Renderer,
        *,
        sampler: Sampler | None = None,
        system: str | None = None,
        options: AnswerOptions | None = None,
    ) -> None:
        self.system = system
        """The system message; a change counts from the next question on."""
        self.usage = Usage()
        """All answers so far, added up."""
        self._engine = engine
        dialect = dialect if isinstance(dialect, Dialect) else Dialect(dialect)
        self._answers = Answers(engine, dialect)
        self._sampler = sampler or Sampler()
        self._options = options or AnswerOptions()
        self._turns: list[Message] = []
        self._current: Answer | None = None
        self._generation: Generation | None = None
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

    def ask(
        self, text: str, progress: Progress | None = None, listener: Listener | None = None
    ) -> Answer:
        """Return the answer to a text; the work is done while iterating over it.

        `progress` hears of the stage "prompt", in tokens; `listener` of what is not text: thoughts
        and notices. An answer that was cut short stays in the history as far as it was said; one
        that never came, thoughts or not, is forgotten with its question. The iteration raises
        ChatError, ContextFullError, ExpertReadError; the session stays usable.
        """
        if self._current:
            self._current.close()
        self._cancelled, self._generation = False, None
        self._current = Answer(partial(self._run, text, progress, listener))
        return self._current

    def cancel(self) -> None:
        """End the current answer before its next token; safe to call from a signal handler."""
        self._cancelled = True
        if self._generation:
            self._generation.cancel()

    def _run(
        self, text: str, progress: Progress | None, listener: Listener | None, answer: Answer
    ) -> Generator[str, None, None]:
        before = list(self._turns)
        generation: Generation | None = None
        try:
            request = self._fit(Message("user", text), answer)
            generation = self._answers.generate(request, progress, sampler=self._sampler)
            self._generation = generation
            if self._cancelled:
                generation.cancel()
            yield from self._speak(generation, answer, listener)
        finally:
            if generation is None:
                answer.finish = "error"
            else:
                generation.close()
                answer.take_end(generation)
            if answer.text or answer.finish in ("end", "length", "context"):
                reasoning = answer.reasoning or None
                self._turns.append(Message("assistant", answer.text, reasoning))
            else:
                self._turns = before
            self.usage += answer.usage

    def _speak(
        self, generation: Generation, answer: Answer, listener: Listener | None
    ) -> Generator[str, None, None]:
        for event, _ in generation:
            answer.usage = generation.usage
            if isinstance(event, TextDelta):
                answer.text += event.text
                yield event.text
                continue
            if isinstance(event, ReasoningDelta):
                answer.reasoning += event.text
            if listener:
                listener(event)

    def _fit(self, question: Message, answer: Answer) -> GenerationRequest:
        """Add a question, forget old turns where there is no room; return the request."""
        size = self._engine.plan.context_tokens
        turns = [*self._turns, question]
        n_tokens = self._n_tokens(turns)
        wanted_room = min(self._options.max_tokens or size, _LEAST_ANSWER_TOKENS, size // 4)
        dropped = 0
        if size - n_tokens < wanted_room:
            # More than is needed now, so that the next turns find their prefix in the context.
            while len(turns) > 1 and size - n_tokens < size // 4:
                del turns[:2]
                dropped += 1
                n_tokens = self._n_tokens(turns)
        request = self._request(turns)
        self._turns = turns
        answer.dropped_turns = dropped
        return request

    def _n_tokens(self, turns: list[Message]) -> int:
        return len(self._answers.encode(self._request(turns)))

    def _request(self, turns: list[Message]) -> GenerationRequest:
        options = self._options
        return GenerationRequest(
            self._conversation(turns),
            sampling=self._sampler.options,
            max_tokens=options.max_tokens,
            response_format=options.response_format,
            template_options=options.template_options,
            thoughts=options.thoughts,
        )

    def _conversation(self, turns: list[Message]) -> tuple[Message, ...]:
        system = (Message("system", self.system),) if self.system else ()
        return (*system, *turns)
