"""Remembered states of recurrent layers: the only positions that such a model can go back to."""

from __future__ import annotations

import ctypes as C
from dataclasses import dataclass
from typing import Any

from localmoe.backends.llama.bindings import L
from localmoe.errors import EngineError

KEPT = 2
"""The end of this question and of the one before: an answer that was stopped goes back to that."""
_PARTIAL = 1  # LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY: recurrent layers alone


@dataclass(frozen=True)
class _Mark:
    position: int
    state: C.Array[Any]


class Marks:
    """At most `KEPT` states of one context, of at most `nbytes` together; 0: none is ever kept."""

    def __init__(self, context: int, nbytes: int) -> None:
        self._context, self._most_nbytes = context, nbytes // KEPT
        self._memory = L.llama_get_memory(context)
        self._marks: list[_Mark] = []

    def add(self, position: int) -> None:
        """Remember the state after `position` tokens, where it is no larger than planned.

        Raises EngineError.
        """
        if not position or not self._most_nbytes:
            return
        size = int(L.llama_state_seq_get_size_ext(self._context, 0, _PARTIAL))
        if not 0 < size <= self._most_nbytes:
            return
        kept = [mark for mark in self._marks if mark.position < position]
        self._marks = kept[max(0, len(kept) + 1 - KEPT) :]
        state = (C.c_uint8 * size)()
        if L.llama_state_seq_get_data_ext(self._context, state, size, 0, _PARTIAL) != size:
            raise EngineError("llama.cpp could not copy the state of the recurrent layers")
        self._marks.append(_Mark(position, state))

    def rewind(self, n: int) -> int:
        """Go back to the last mark that is not behind n, or to 0; return the position."""
        self._marks = [mark for mark in self._marks if mark.position <= n]
        while self._marks:
            mark = self._marks[-1]
            size = len(mark.state)
            if L.llama_state_seq_set_data_ext(
                self._context, mark.state, size, 0, _PARTIAL
            ) == size and L.llama_memory_seq_rm(self._memory, 0, mark.position, -1):
                return mark.position
            self._marks.pop()
        L.llama_memory_clear(self._memory, True)
        return 0
