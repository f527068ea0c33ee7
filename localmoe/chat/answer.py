"""One answer of a session while it is being given, and after."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Generator as Generates
from typing import Literal

from localmoe.chat.generation import Generation
from localmoe.chat.usage import Usage

Finish = Literal["end", "length", "context", "cancelled", "error"]
"""Why an answer ended: the model ended it, --max-tokens, a full context, the user, a failure."""


class Answer(Iterator[str]):
    """An iterator over the pieces of text of an answer; closing it stops the answer.

    The work is done while iterating. All attributes are final once the iteration has ended.
    """

    def __init__(self, start: Callable[[Answer], Generates[str, None, None]]) -> None:
        self.text = ""
        """What was said so far."""
        self.reasoning = ""
        """What was thought so far."""
        self.finish: Finish | None = None
        """Why it ended; None while it goes on."""
        self.usage = Usage()
        self.dropped_turns = 0
        """How many of the oldest turns were forgotten to make room."""
        self._pieces = start(self)

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stop here. What was said stays in the conversation. May be called twice."""
        self._pieces.close()

    def take_end(self, generation: Generation) -> None:
        """Copy why and at what cost the answer ended."""
        finish = generation.finish
        self.finish = "end" if finish == "stop" or finish == "tool_calls" else finish
        self.usage = generation.usage
