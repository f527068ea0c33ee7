"""The line in which a person types: several lines, pasted text, history, completion."""

from __future__ import annotations

from collections.abc import Iterable

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output

from localmoe.cli.chat_commands import NAMES

_PROMPT = FormattedText([("bold", "> ")])
_CONTINUED = FormattedText([("", "  ")])


class LineEditor:
    """Reads what a person says. Enter sends; Alt-Enter or a backslash before it add a line."""

    def __init__(self, keyboard: Input | None = None, screen: Output | None = None) -> None:
        self._session: PromptSession[str] = PromptSession(
            message=_PROMPT,
            multiline=True,
            prompt_continuation=_CONTINUED,
            key_bindings=_key_bindings(),
            completer=_CommandCompleter(),
            complete_while_typing=True,
            reserve_space_for_menu=len(NAMES),
            input=keyboard,
            output=screen,
        )

    def read(self) -> str:
        """Return what was typed. Raises EOFError after Ctrl-D, KeyboardInterrupt after Ctrl-C."""
        # A Ctrl-C that comes before the line is open must not find what was typed last.
        self._session.default_buffer.reset()
        return self._session.prompt()

    @property
    def abandoned(self) -> str:
        """What stood in the line when Ctrl-C was pressed."""
        return self._session.default_buffer.text


class _CommandCompleter(Completer):
    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        typed = document.text
        if typed.startswith("/"):
            for name in NAMES:
                if name.startswith(typed):
                    yield Completion(name, start_position=-len(typed))


def _key_bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter")
    def _send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.current_line_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings
