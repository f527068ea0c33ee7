"""How a model's family speaks: its template, its markup of thoughts and of calls of tools."""

from __future__ import annotations

from localmoe.backends.base import Engine
from localmoe.chat.parser import AnswerParser, PlainParser
from localmoe.chat.request import GenerationRequest, Grammar, JsonSchema
from localmoe.chat.templates import Renderer, renderer_for


class Dialect:
    """Turns requests into prompts, and what the model says into events."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    def prompt(self, request: GenerationRequest) -> str:
        """Return the text up to the place where the assistant speaks. Raises ChatError."""
        return self._renderer.render(request.messages)

    def parser(self, request: GenerationRequest, prompt: str) -> AnswerParser:
        """Return a parser for the answer to a prompt."""
        return PlainParser()

    def constraint(self, request: GenerationRequest) -> JsonSchema | Grammar | None:
        """Return what an answer, or a call of a tool that has to be made, must look like."""
        return request.response_format


def dialect_for(engine: Engine) -> tuple[Dialect, str | None]:
    """Return a checkpoint's dialect and, where its template is not its own, a note for the user.

    Raises ChatError.
    """
    renderer, note = renderer_for(engine)
    return Dialect(renderer), note
