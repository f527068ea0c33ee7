"""One answer while it is being given, and after."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Literal

from localmoe.chat.usage import Usage

Finish = Literal["end", "length", "context", "cancelled", "error"]
"""Why an answer ended: the model ended it, --max-tokens, a full context, the user, a failure."""


class Answer(Iterator[str]):
    """An iterator over the pieces of text of an answer; closing it stops the answer.

    The work is done while iterating. All attributes are final once the iteration has ended.
    """

    def __init__(self, start: Callable[[Answer], Generator[str, None, None]]) -> None:
        self.text = ""
        """What was said so far."""
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
