"""One question put to a session, and its answer shown."""

from __future__ import annotations

from localmoe.backends.base import Engine
from localmoe.chat.answer import Answer, Finish
from localmoe.chat.events import Event, Notice, ReasoningDelta
from localmoe.chat.session import ChatSession
from localmoe.cli.interrupts import Interrupts
from localmoe.cli.render import AnswerView
from localmoe.cli.stats_file import status_line
from localmoe.cli.terminal import dim_line, without_echo

_NOTES: dict[Finish, str] = {
    "length": "stopped at --max-tokens",
    "context": "stopped: the context is full (--context gives more room)",
    "cancelled": "stopped",
}


def show_answer(session: ChatSession, question: str, view: AnswerView) -> tuple[Answer, int]:
    """Show the answer as it comes; return it, and how often Ctrl-C was pressed meanwhile.

    Raises what `ChatSession.ask` raises.
    """
    notices: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, ReasoningDelta):
            view.think(event.text)
        elif isinstance(event, Notice):
            notices.append(event.text)

    answer = session.ask(question, view.progress, listen)
    with without_echo(), Interrupts(session.cancel) as interrupts, view:
        try:
            for piece in answer:
                view.write(piece)
        finally:
            answer.close()
    for notice in notices:
        dim_line(notice)
    return answer, interrupts.count


def summary(engine: Engine, answer: Answer) -> str:
    """Return the line under an answer: its cost, and why it ended if that is not plain."""
    words = [status_line(engine, answer.usage)] if answer.usage.answer_tokens else []
    if answer.finish in _NOTES:
        words.append(_NOTES[answer.finish])
    if answer.dropped_turns:
        turns = "turn was" if answer.dropped_turns == 1 else f"{answer.dropped_turns} turns were"
        words.append(f"the oldest {turns} forgotten to make room")
    return " · ".join(words)
