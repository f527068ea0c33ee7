"""How a model speaks: from requests to prompts, from its words to events, and to grammars."""

from __future__ import annotations

import string
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from localmoe.backends.base import Engine, Tokenizer
from localmoe.chat.constraint import inline_rules
from localmoe.chat.family import Family, family_of
from localmoe.chat.history import template_messages, template_tools
from localmoe.chat.messages import Message, ToolCall
from localmoe.chat.parser import AnswerParser, PlainParser
from localmoe.chat.request import GenerationRequest, Grammar, JsonSchema, Thoughts
from localmoe.chat.templates import ChatTemplate, Renderer, is_token, renderer_for
from localmoe.chat.thinking import ThinkingParser
from localmoe.errors import ChatError

if TYPE_CHECKING:
    from localmoe.chat.tools.format import CallFormat

_PROBE = "localmoe_probe"
_ID_LETTERS = string.ascii_letters + string.digits


def random_id() -> str:
    """Return an id for a call, such as call_8fKd0..."""
    import secrets

    return "call_" + "".join(secrets.choice(_ID_LETTERS) for _ in range(24))


def short_id() -> str:
    """Return an id of nine letters and digits."""
    import secrets

    return "".join(secrets.choice(_ID_LETTERS) for _ in range(9))


class Dialect:
    """One model's template and family."""

    def __init__(
        self,
        renderer: Renderer,
        family: Family | None = None,
        *,
        new_id: Callable[[], str] | None = None,
    ) -> None:
        """Without a family all that the model says is text. `new_id` names calls."""
        self._renderer = renderer
        self.family = family or Family()
        self._new_id = new_id or (short_id if self.family.short_ids else random_id)

    @property
    def can_think(self) -> bool:
        """Whether the model may think before it answers."""
        return self.family.is_harmony or self.family.tags is not None

    def prompt(self, request: GenerationRequest) -> str:
        """Return the text up to the place where the assistant speaks. Raises ChatError."""
        if not isinstance(self._renderer, ChatTemplate):
            return self._renderer.render(request.messages)
        tools = request.offered_tools
        messages = list(request.messages)
        has_calls = any(each.tool_calls or each.role == "tool" for each in messages)
        if not self.family.knows_tools and (tools or has_calls):
            from localmoe.chat.tool_prompt import told_in_words

            messages = told_in_words(messages, tools, self.family.calls)
            tools = ()
        thoughts: Thoughts = request.thoughts or self.family.thoughts
        values = template_messages(
            messages,
            self.family,
            thoughts,
            text_arguments=has_calls and self._wants_text_arguments,
        )
        return self._renderer.render_values(values, template_tools(tools), self._options(request))

    def parser(self, request: GenerationRequest, prompt: str) -> AnswerParser:
        """Return a parser for the answer to a prompt."""
        tools = request.offered_tools
        if self.family.is_harmony:
            from localmoe.chat.harmony import HarmonyParser

            return HarmonyParser(tools, self._new_id)
        rest: AnswerParser = PlainParser()
        openings: tuple[str, ...] = ()
        if tools:
            from localmoe.chat.tools.parser import CallParser

            rest = calls = CallParser(self._calls, tools, self._new_id)
            openings = calls.openings
        tags = self.family.tags
        if tags is None:
            return rest
        begun = prompt.rstrip().endswith(tags.opening)
        return ThinkingParser(tags, rest, begun=begun, calls=openings)

    def constraint(
        self, request: GenerationRequest, tokenizer: Tokenizer
    ) -> JsonSchema | Grammar | None:
        """Return what an answer, or a call of a tool that has to be made, must look like."""

        def marker(text: str) -> str:
            return _term(text, tokenizer)

        wanted = request.response_format
        if request.tool_choice not in ("auto", "none"):
            return self._call_grammar(request, marker)
        if wanted is None or not self.family.is_harmony:
            return wanted
        from localmoe.chat import harmony

        answer, rules = inline_rules(wanted)
        final = harmony.final_rules(answer, marker)
        return Grammar(harmony.start_rules("final", marker) + final + rules)

    def thinking_options(
        self, thinks: bool | None = None, effort: str | None = None
    ) -> dict[str, Any]:
        """Return template options that turn thinking on or off, or say how much of it there is.

        None leaves it to the template. Raises ChatError where the template cannot do it.
        """
        options: dict[str, Any] = {}
        if thinks is not None:
            if self.family.no_thinking is None:
                raise ChatError(
                    f"thinking cannot be turned {'on' if thinks else 'off'}: this model's template "
                    + self._why_no_switch
                )
            options.update({name: thinks for name in self.family.no_thinking})
        if effort is not None:
            if not self.family.knows_effort:
                raise ChatError("this model's template knows no reasoning effort: drop --effort")
            options["reasoning_effort"] = effort
        return options

    @property
    def _why_no_switch(self) -> str:
        if not self.can_think:
            return "knows of no thoughts"
        less = "; --effort low makes it think less" if self.family.knows_effort else ""
        return f"has no switch for it{less}"

    def _call_grammar(self, request: GenerationRequest, marker: Callable[[str], str]) -> Grammar:
        from localmoe.chat import harmony

        named = request.tool_choice != "required"
        tools = [t for t in request.tools if not named or t.name == request.tool_choice]
        rules = harmony.call_rules if self.family.is_harmony else self._calls.grammar
        names = " | ".join(f"call_{index}" for index in range(len(tools)))
        text = "".join(rules(tool, index, marker) for index, tool in enumerate(tools))
        if self.family.is_harmony:
            return Grammar(harmony.start_rules(names, marker) + text)
        return Grammar(f"start: {names}\n{text}")

    def _options(self, request: GenerationRequest) -> dict[str, Any]:
        options = dict(request.template_options)
        switch = self.family.no_thinking or {}
        if "enable_thinking" in options and "thinking" in switch:
            options.setdefault("thinking", options["enable_thinking"])
        if request.thoughts == "keep":
            options = {**(self.family.keep_options or {}), **options}
        return options

    @property
    def _calls(self) -> CallFormat:
        from localmoe.chat.tools.table import FORMATS  # most chats call no tools

        return FORMATS[self.family.calls or "hermes"]

    @cached_property
    def _wants_text_arguments(self) -> bool:
        """Whether the template wants the arguments of calls as text: it is tried out."""
        call = ToolCall("call00000", "f", f'{{"{_PROBE}": "{_PROBE}"}}')
        messages = [
            Message("user", "a"),
            Message("assistant", "", tool_calls=(call,)),
            Message("tool", "b", tool_call_id="call00000", name="f"),
        ]
        assert isinstance(self._renderer, ChatTemplate)
        values = template_messages(messages, self.family, "strip", text_arguments=False)
        try:
            shown = self._renderer.render_values(values, None, {})
        except ChatError:
            return True
        # An object that became text by accident shows as Python writes it.
        return _PROBE not in shown or f"'{_PROBE}'" in shown


def dialect_for(engine: Engine) -> tuple[Dialect, str | None]:
    """Return a checkpoint's dialect and, where its template is not its own, a note for the user.

    Raises ChatError.
    """
    renderer, note = renderer_for(engine)
    has_token = is_token(engine.tokenizer, "<think>")
    source = renderer.source if isinstance(renderer, ChatTemplate) else ""
    family = family_of(source, engine.architecture, has_think_token=has_token)
    return Dialect(renderer, family), note


def _term(text: str, tokenizer: Tokenizer) -> str:
    """Return a term of a Lark grammar for a text: a control token if it is one, else a string."""
    from localmoe.chat.tools.format import quoted

    tokens = tokenizer.encode(text, special=True)
    is_control = len(tokens) == 1 and not tokenizer.token_bytes(tokens[0])
    return f"<[{tokens[0]}]>" if is_control else quoted(text)
