"""What one rendering of a template may use of time and memory."""

from __future__ import annotations

import time
from dataclasses import dataclass

from jinja2.exceptions import SecurityError

_VALUE_CHARACTERS = 64
"""What a number, or a container besides its items, counts for."""


@dataclass(frozen=True)
class TemplateLimits:
    """What one rendering may use."""

    seconds: float = 5.0
    steps: int = 2_000_000
    """Loop rounds and operators; a call counts as 20 of them."""
    characters: int = 32_000_000
    """Characters of all texts made on the way, the output included."""


class Allowance:
    """What is left for one rendering; raises SecurityError when it is used up."""

    def __init__(self, limits: TemplateLimits) -> None:
        self._limits = limits
        self._deadline = time.monotonic() + limits.seconds
        self._steps = limits.steps
        self._characters = limits.characters

    def take_steps(self, n: int) -> None:
        """Use n loop rounds."""
        self._steps -= n
        if self._steps < 0:
            raise SecurityError(f"the template loops or calls more than {self._limits.steps} times")
        if time.monotonic() > self._deadline:
            raise SecurityError(f"the template runs longer than {self._limits.seconds:g} s")

    def take_characters(self, n: int) -> None:
        """Use n characters of text."""
        self._characters -= n
        if self._characters < 0:
            raise SecurityError(
                f"the template makes more than {self._limits.characters} characters of text"
            )

    def take_value(self, value: object) -> None:
        """Use as many characters as the text of a value has, containers included, at least."""
        waiting = [value]
        while waiting:
            item = waiting.pop()
            self.take_characters(len(item) if isinstance(item, str) else _VALUE_CHARACTERS)
            if isinstance(item, dict):
                waiting.extend(item.keys())
                waiting.extend(item.values())
            elif isinstance(item, (list, tuple, set, frozenset)):
                waiting.extend(item)
