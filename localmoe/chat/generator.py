"""Answers to requests that each bring their whole conversation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from localmoe.backends.base import Engine
from localmoe.chat.constraint import Constraints
from localmoe.chat.context import Context
from localmoe.chat.dialect import Dialect
from localmoe.chat.generation import Generation, Prepared
from localmoe.chat.parser import AnswerParser, PlainParser
from localmoe.chat.request import GenerationRequest
from localmoe.chat.sampling import Sampler
from localmoe.chat.templates import special_text
from localmoe.errors import ChatError, ContextFullError
from localmoe.settings import Progress


class Generator:
    """Gives one answer at a time; not thread safe, but for `Generation.cancel`.

    Stateless for the caller. What a prompt shares with the one before is not computed again.
    Nobody else may use the engine meanwhile.
    """

    def __init__(self, engine: Engine, dialect: Dialect) -> None:
        """`dialect`: what `dialect_for` returns for the engine."""
        self.engine, self.dialect = engine, dialect
        self._context = Context(engine)
        self._constraints = Constraints(engine.tokenizer)
        self._current: Generation | None = None

    def generate(
        self,
        request: GenerationRequest,
        progress: Progress | None = None,
        *,
        sampler: Sampler | None = None,
    ) -> Generation:
        """Return an answer; the engine works while it is iterated over.

        An unfinished answer before it is closed. `progress` hears of the stage "prompt", in tokens.
        `sampler` replaces a new one with the request's options. Raises ChatError for messages,
        tools, schemas and grammars that cannot be used, and ContextFullError for a prompt that
        leaves no room.
        """
        if self._current:
            self._current.close()
        text, tokens = self._prompt(request)
        size = self.engine.plan.context_tokens
        if len(tokens) >= size:
            raise ContextFullError(
                f"the prompt has {len(tokens)} tokens and the context {size}, of which the answer "
                f"needs some: shorten the prompt, or give --context {len(tokens) + 512} or more"
            )
        parser: AnswerParser = PlainParser()
        if request.prompt is None:
            parser = self.dialect.parser(request, text)
        wanted = self.dialect.constraint(request, self.engine.tokenizer)
        constraint = self._constraints.make(wanted) if wanted else None
        sampler = sampler or Sampler(request.sampling)
        prepared = Prepared(request, tokens, parser, sampler, constraint, progress)
        self._current = Generation(self.engine, self._context, prepared)
        return self._current

    def encode(self, request: GenerationRequest) -> list[int]:
        """Return the tokens of a request's prompt. Raises ChatError."""
        return self._prompt(request)[1]

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens that the engine's context holds."""
        return self._context.tokens

    def save(self, path: Path) -> tuple[int, ...]:
        """Write the engine's context, see `Engine.save`; return the tokens that it holds."""
        self._engine_state()
        self.engine.save(path)
        return self._context.tokens

    def restore(self, path: Path, tokens: Sequence[int]) -> None:
        """Read back what `save` wrote; `tokens`: what it returned. Raises EngineError."""
        self._engine_state()
        self._context.adopt(tokens, lambda: self.engine.restore(path))

    def _engine_state(self) -> None:
        if self._current:
            self._current.close()

    def _prompt(self, request: GenerationRequest) -> tuple[str, list[int]]:
        """Return a prompt as text and as tokens."""
        if isinstance(request.prompt, tuple):
            return "", self._checked(list(request.prompt))
        text = request.prompt
        if text is None:
            text = self.dialect.prompt(request)
        tokenizer = self.engine.tokenizer
        tokens = tokenizer.encode(text, special=True)
        if tokenizer.add_bos and tokenizer.bos is not None:
            bos_text = special_text(tokenizer, tokenizer.bos)
            # Most templates write the bos themselves.
            if not (bos_text and text.startswith(bos_text)):
                tokens.insert(0, tokenizer.bos)
        return text, self._checked(tokens)

    def _checked(self, tokens: list[int]) -> list[int]:
        if not tokens:
            raise ChatError("the prompt is empty: give it at least one word")
        n_vocab = self.engine.tokenizer.n_vocab
        bad = next((token for token in tokens if not 0 <= token < n_vocab), None)
        if bad is not None:
            raise ChatError(f"token {bad} is not one of the model's {n_vocab}")
        return tokens
