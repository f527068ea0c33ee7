"""The chat on a terminal: read, answer, say what it cost."""

from __future__ import annotations

import sys

from rich.text import Text

from localmoe.backends.base import Engine
from localmoe.chat.session import ChatSession
from localmoe.cli.answering import show_answer, summary
from localmoe.cli.chat_commands import ChatCommands
from localmoe.cli.interrupts import BrokenOffError
from localmoe.cli.line_editor import LineEditor
from localmoe.cli.render import view_for
from localmoe.cli.terminal import console_for, error_line
from localmoe.errors import LocalMoeError

_WELCOME = "/help lists the commands, Ctrl-D leaves."
_HINT = "/exit or Ctrl-D leaves the chat."


class Chat:
    """Goes on until the person leaves. An error ends an answer, not the chat."""

    def __init__(
        self,
        session: ChatSession,
        engine: Engine,
        editor: LineEditor | None = None,
        *,
        shows_thoughts: bool = True,
    ) -> None:
        self._session, self._engine = session, engine
        self._editor = editor or LineEditor()
        self._commands = ChatCommands(session, engine)
        self._console = console_for(sys.stdout)
        self._shows_thoughts = shows_thoughts

    def run(self) -> None:
        """Chat. Raises BrokenOffError where the person does not want to wait for the engine."""
        self._say(_WELCOME)
        goes_on = True
        while goes_on:
            try:
                goes_on = self._turn()
            except BrokenOffError:
                raise
            except KeyboardInterrupt:
                if not self._editor.abandoned:
                    self._say(_HINT)

    def _turn(self) -> bool:
        """Read a line and act on it; return whether the chat goes on."""
        try:
            line = self._editor.read()
        except EOFError:
            return False
        outcome = self._commands.run(line)
        if outcome is not None:
            if outcome.text:
                self._say(outcome.text)
            return not outcome.leaves
        if line.strip():
            self._answer(line)
        return True

    def _answer(self, question: str) -> None:
        try:
            view = view_for(sys.stdout, self._shows_thoughts)
            answer, _ = show_answer(self._session, question, view)
        except LocalMoeError as error:
            error_line(str(error))
            return
        self._say(summary(self._engine, answer) or "(the model said nothing)")
        self._console.print()

    def _say(self, text: str) -> None:
        self._console.print(Text(text, style="dim"))
