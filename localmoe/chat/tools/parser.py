"""Finds calls of tools in the text of an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from localmoe.chat.events import Event, Notice, TextDelta, ToolCallDelta, ToolCallStart
from localmoe.chat.messages import Tool
from localmoe.chat.stopping import earliest, held_length, trimmed_length
from localmoe.chat.tools.format import Call, CallFormat, Malformed, Reading
from localmoe.chat.tools.scanning import Scanner

MAX_CALL_CHARACTERS = 1_000_000
"""A longer call is shown as text."""
_MAX_ENDS = 64
"""As many closing markers may turn out to be inside a string."""


NewId = Callable[[], str]


class CallLog:
    """Numbers the calls of an answer and gives ids to those that have none."""

    def __init__(self, new_id: NewId) -> None:
        self._new_id = new_id
        self._n_calls = 0
        self._ids: set[str] = set()

    def events(self, calls: Sequence[Call]) -> list[Event]:
        """Return the events of calls."""
        events: list[Event] = []
        for call in calls:
            number = self._new_id() if call.id is None or call.id in self._ids else call.id
            self._ids.add(number)
            events.append(ToolCallStart(self._n_calls, number, call.name))
            events.append(ToolCallDelta(self._n_calls, call.arguments))
            self._n_calls += 1
        return events


def shown_as_text(block: str, reason: str) -> list[Event]:
    """Return the events of a call that is none."""
    return [
        TextDelta(block),
        Notice(f"a call of a tool was malformed and is shown as text: {reason}"),
    ]


class CallParser:
    """Lets text through and turns blocks of calls into events; see `AnswerParser`.

    Space around calls is dropped. A call is told of once it is complete.
    """

    in_reasoning = False
    constrainable = True
    opening: str | None = None

    def __init__(self, form: CallFormat, tools: Sequence[Tool], new_id: NewId) -> None:
        self._format, self._tools = form, tools
        self._log = CallLog(new_id)
        self._openings = form.openings + form.silent
        self._text = ""
        """Not yet told of, outside of blocks."""
        self._block: list[str] = []
        self._length = 0
        self._space = ""
        """What was dropped before the block; it comes back if the block is no call."""
        self._scanner: Scanner | None = None
        """There in a block only."""
        self._n_ends = 0
        self._may_begin = True
        """Nothing but space was said since the beginning or the last call."""
        self._follows_call = False

    @property
    def markers(self) -> frozenset[str]:
        """Control tokens that it wants to see as text."""
        return self._format.markers

    @property
    def openings(self) -> tuple[str, ...]:
        """Markers with which calls begin, wherever they stand."""
        return self._openings

    def feed(self, text: str) -> list[Event]:
        """Return the events that are certain after more text."""
        events: list[Event] = []
        while text:
            step = self._outside if self._scanner is None else self._inside
            text, more = step(text)
            events.extend(more)
        return events

    def finish(self) -> list[Event]:
        """Return the rest: the answer is over."""
        if self._scanner is None:
            rest, self._text = self._text, ""
            is_space = self._follows_call and not rest.strip()
            return [TextDelta(rest)] if rest and not is_space else []
        self._scanner = None
        block = self._taken()
        reading = self._format.read(block, self._tools, True)
        if reading == "unfinished":
            reading = Malformed("the answer ended in the middle of it")
        return self._told(block, reading)

    def _outside(self, text: str) -> tuple[str, list[Event]]:
        """Take in text outside of blocks; return what is left of it, and events."""
        text, self._text = self._text + text, ""
        found = earliest(text, self._openings)
        first = self._first(text)
        if first is not None and (found is None or first[0] <= found[0]):
            found = first
        if found is None:
            return "", self._let_through(text)
        at, marker = found
        said = trimmed_length(text[:at])
        events = self._said(text[:said])
        if marker in self._format.silent:
            self._follows_call = True
            return text[at + len(marker) :], events
        self._space = "" if self._follows_call else text[said:at]
        self._scanner, self._n_ends = self._format.scanner(marker), 0
        if marker in self._format.first:
            # Its own bracket is what has to be closed.
            return text[at:], events
        self._add(marker)
        return text[at + len(marker) :], events

    def _first(self, text: str) -> tuple[int, str] | None:
        if not self._may_begin or not self._format.first:
            return None
        at = len(text) - len(text.lstrip())
        marker = next((each for each in self._format.first if text.startswith(each, at)), None)
        return None if marker is None else (at, marker)

    def _let_through(self, text: str) -> list[Event]:
        """Tell of text but for an end that may belong to a marker, and space before it."""
        keep = len(text) - held_length(text, self._openings)
        keep = trimmed_length(text[:keep])
        self._text = text[keep:]
        return self._said(text[:keep])

    def _said(self, text: str) -> list[Event]:
        if self._follows_call:
            text = text.lstrip()
        if not text:
            return []
        self._may_begin = self._may_begin and not text.strip()
        self._follows_call = False
        return [TextDelta(text)]

    def _inside(self, text: str) -> tuple[str, list[Event]]:
        """Take in text of a block; return what is left of it, and events."""
        assert self._scanner is not None
        end = self._scanner.feed(text)
        room = MAX_CALL_CHARACTERS - self._length
        if room < (len(text) if end is None else end):
            self._add(text[:room])
            self._scanner = None
            return text[room:], self._told(self._taken(), Malformed("it is too long"))
        self._add(text[:end])
        if end is None:
            return "", []
        self._n_ends += 1
        block = self._taken()
        reading = self._format.read(block, self._tools, False)
        if reading == "unfinished":
            if self._n_ends < _MAX_ENDS:
                self._add(block)
                return text[end:], []
            reading = Malformed("it goes on behind its end again and again")
        self._scanner = None
        return text[end:], self._told(block, reading)

    def _add(self, text: str) -> None:
        self._block.append(text)
        self._length += len(text)

    def _taken(self) -> str:
        block = "".join(self._block)
        self._block.clear()
        self._length = 0
        return block

    def _told(self, block: str, reading: Reading) -> list[Event]:
        """Return the events of a block that has ended."""
        if isinstance(reading, Malformed):
            again = max((block.rfind(each, 1) for each in self._format.openings), default=-1)
            second = self._format.read(block[again:], self._tools, False) if again > 0 else "text"
            if not isinstance(second, str | Malformed):
                first = shown_as_text(self._space + block[:again], reading.reason)
                self._follows_call = True
                return first + self._log.events(second)
            self._follows_call = self._may_begin = False
            return shown_as_text(self._space + block, reading.reason)
        if isinstance(reading, str):
            self._follows_call = self._may_begin = False
            return [TextDelta(self._space + block)]
        self._follows_call = True
        return self._log.events(reading)
