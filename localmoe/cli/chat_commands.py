"""The commands of the chat: lines that begin with a slash."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from localmoe.backends.base import Engine
from localmoe.chat.session import ChatSession
from localmoe.cli.stats_file import peak_rss_bytes
from localmoe.planning.sizes import format_nbytes

_COMMAND = re.compile(r"/(\w+)(?:\s+(.*))?", re.DOTALL)
_QUESTION_MARK = "/?"

HELP = """\
/help           this list
/clear          forget the conversation; the system message stays
/stats          speed, expert cache and memory so far
/system TEXT    set the system message; without TEXT show it; "/system -" removes it
/exit           leave (or Ctrl-D)

Enter sends. Alt-Enter, or a backslash at the end of a line, starts a new line.
Ctrl-C stops an answer; at the prompt it clears the line."""

NAMES = ("/help", "/clear", "/stats", "/system", "/exit")


@dataclass(frozen=True)
class Outcome:
    """What to tell the user, and whether the chat is over."""

    text: str = ""
    leaves: bool = False


class ChatCommands:
    """Carries out commands on a session."""

    def __init__(self, session: ChatSession, engine: Engine) -> None:
        self._session, self._engine = session, engine
        self._actions: dict[str, Callable[[str], Outcome]] = {
            "help": lambda _: Outcome(HELP),
            "clear": self._clear,
            "stats": lambda _: Outcome(self._stats()),
            "system": self._system,
            "exit": lambda _: Outcome(leaves=True),
            "quit": lambda _: Outcome(leaves=True),
        }

    def run(self, line: str) -> Outcome | None:
        """Carry out a line; None if it is no command but something to say to the model."""
        if line.strip() == _QUESTION_MARK:
            return Outcome(HELP)
        match = _COMMAND.fullmatch(line.strip())
        if not match:
            return None
        action = self._actions.get(match.group(1).lower())
        if action is None:
            return Outcome(f"There is no command /{match.group(1)}; /help lists them.")
        return action((match.group(2) or "").strip())

    def _clear(self, _: str) -> Outcome:
        self._session.clear()
        return Outcome("The conversation is forgotten.")

    def _system(self, text: str) -> Outcome:
        if text:
            self._session.system = None if text == "-" else text
        if self._session.system is None:
            return Outcome("There is no system message.")
        return Outcome(f"System message: {self._session.system}")

    def _stats(self) -> str:
        usage, plan = self._session.usage, self._engine.plan
        decode = usage.decode
        rows = [
            ("prompt", f"{usage.prefill.tokens} tokens, {usage.prefill.tokens_per_second:.1f} "
             "tok/s"),
            ("answers", f"{usage.answer_tokens} tokens, {decode.tokens_per_second:.1f} tok/s"),
            ("context", f"{self._engine.position} of {plan.context_tokens} tokens"),
            ("memory", f"{format_nbytes(peak_rss_bytes())} at most, of a budget of "
             f"{format_nbytes(plan.budget_bytes)}"),
        ]  # fmt: skip
        if plan.behind:
            rows[-1] = ("memory", f"{format_nbytes(plan.budget_bytes)} of the GPU's and "
                        f"{format_nbytes(plan.behind.budget_bytes)} behind it")  # fmt: skip
        if plan.streams:
            read = format_nbytes(round(decode.per_token(decode.stats.read_bytes)))
            stall = 1000 * decode.per_token(decode.stats.stall_seconds)
            rows += [
                ("experts", f"{plan.slots} of {plan.experts} in memory, "
                 f"{100 * decode.stats.hit_rate:.1f} % of requests found there"),
                ("reading", f"{read} and {stall:.1f} ms of waiting per token"),
            ]  # fmt: skip
        elif plan.experts:
            rows.append(("experts", f"all {plan.experts} in memory"))
        else:
            rows.append(("experts", "none: a dense model, all of it in memory"))
        return "\n".join(f"{name:<9}{value}" for name, value in rows)
