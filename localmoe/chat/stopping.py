"""Texts that mean something in a stream, and those that end it."""

from __future__ import annotations

from collections.abc import Sequence

_MAX_SPACE = 256
"""As many spaces and newlines wait for what comes after them."""


def held_length(text: str, wanted: Sequence[str]) -> int:
    """Return how many characters at the end of a text may be the beginning of a wanted one."""
    longest = max(map(len, wanted), default=0)
    for n in range(min(longest - 1, len(text)), 0, -1):
        tail = text[-n:]
        if any(each.startswith(tail) for each in wanted):
            return n
    return 0


def earliest(text: str, wanted: Sequence[str]) -> tuple[int, str] | None:
    """Return where the first of the wanted texts begins, and which it is; None: there is none."""
    places = ((text.find(each), each) for each in wanted)
    return min((place for place in places if place[0] >= 0), default=None)


def trimmed_length(text: str) -> int:
    """Return the length of a text without the space at its end, of which not too much may wait.

    It waits in the same way however the text was cut into pieces.
    """
    length = len(text.rstrip())
    space = len(text) - length
    return length + space - space % _MAX_SPACE


class StopTexts:
    """Lets text through up to the first stop text; what may begin one waits."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched: str | None = None
        """The stop text that was found; nothing comes after it."""

    def feed(self, text: str) -> str:
        """Return the text that is certain to be part of the answer."""
        if not self._stops or self.matched is not None:
            return "" if self.matched is not None else text
        text = self._held + text
        places = ((text.find(stop), stop) for stop in self._stops)
        # The first to be complete, as if each character came alone.
        ends = [(at + len(stop), at, stop) for at, stop in places if at >= 0]
        if ends:
            _, at, self.matched = min(ends)
            self._held = ""
            return text[:at]
        keep = len(text) - held_length(text, self._stops)
        self._held = text[keep:]
        return text[:keep]

    def flush(self) -> str:
        """Return what waited: the text is over, or something else follows."""
        held, self._held = self._held, ""
        return held
