"""gpt-oss's markup: messages on channels, of which one holds the thoughts and one the answer."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from localmoe.chat.events import Event, ReasoningDelta, TextDelta
from localmoe.chat.messages import Tool
from localmoe.chat.stopping import earliest, held_length
from localmoe.chat.tools.format import Malformed, Marker, quoted
from localmoe.chat.tools.json_calls import arguments_schema, read_arguments
from localmoe.chat.tools.parser import MAX_CALL_CHARACTERS, CallLog, NewId, shown_as_text

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
END, RETURN, CALL, CONSTRAIN = "<|end|>", "<|return|>", "<|call|>", "<|constrain|>"
_HEAD_MARKS = (START, MESSAGE, END, RETURN, CALL)
_BODY_MARKS = (START, CHANNEL, MESSAGE, END, RETURN, CALL)
_MAX_HEAD = 1024
_CHANNEL = re.compile(re.escape(CHANNEL) + r"\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")


class HarmonyParser:
    """Reads an answer that begins behind "<|start|>assistant"; see `AnswerParser`."""

    markers = frozenset((*_BODY_MARKS, CONSTRAIN))
    # Its grammars speak of the channels, the one for thoughts included.
    constrainable = True
    opening: str | None = None

    def __init__(self, tools: Sequence[Tool], new_id: NewId) -> None:
        self._has_tools = bool(tools)
        self._log = CallLog(new_id)
        self._text = ""
        """Not yet told of: what may be the beginning of a marker."""
        self._head: str | None = ""
        """None in a body."""
        self._channel, self._recipient = "final", ""
        self._call: list[str] = []
        self._length = 0
        self._told: set[str] = set()
        """Channels on which something was said."""
        self._gap = ""
        """Comes before the next words of the channel: they are another message."""

    @property
    def in_reasoning(self) -> bool:
        """Whether a message on the channel for thoughts goes on."""
        return self._head is None and self._channel == "analysis" and not self._recipient

    def feed(self, text: str) -> list[Event]:
        """Return the events that are certain after more text."""
        events: list[Event] = []
        text, self._text = self._text + text, ""
        while text:
            marks = _BODY_MARKS if self._head is None else _HEAD_MARKS
            found = earliest(text, marks)
            keep = len(text) - held_length(text, marks) if found is None else found[0]
            if keep > self._room:
                keep = int(self._room) + 1
                self._take(text[:keep], events)
                self._give_up("it is too long", events)
                text = text[keep:]
                continue
            self._take(text[:keep], events)
            if found is None:
                self._text = text[keep:]
                break
            self._pass(found[1], events)
            text = text[keep + len(found[1]) :]
        return events

    def finish(self) -> list[Event]:
        """Return the rest: the answer is over."""
        events: list[Event] = []
        held, self._text = self._text, ""
        self._take(held, events)
        if self._head is not None:
            if self._head.strip() and CHANNEL not in self._head and "to=" not in self._head:
                # Words without any markup.
                events.append(TextDelta(self._head))
            self._head = ""
        else:
            self._end(events, "the answer ended in the middle of it")
        return events

    def _take(self, text: str, events: list[Event]) -> None:
        """Take in text without markers."""
        if not text:
            return
        if self._head is not None:
            self._head += text
        elif self._recipient:
            self._call.append(text)
            self._length += len(text)
        else:
            self._say(text, events)

    @property
    def _room(self) -> float:
        """How many characters more there may be before the next marker."""
        if self._head is not None:
            return _MAX_HEAD - len(self._head)
        return MAX_CALL_CHARACTERS - self._length if self._recipient else math.inf

    def _pass(self, mark: str, events: list[Event]) -> None:
        """Act on a marker."""
        if mark == MESSAGE:
            if self._head is not None:
                self._read_head(self._head)
            return
        if self._head is None:
            self._end(events, None)
        self._head = mark if mark == CHANNEL else ""

    def _read_head(self, head: str) -> None:
        channel, recipient = _CHANNEL.search(head), _RECIPIENT.search(head)
        self._channel = channel.group(1) if channel else "final"
        name = recipient.group(1) if recipient else ""
        # Messages to the user are no calls.
        is_call = name not in ("", "user", "assistant", "all")
        self._recipient = name.removeprefix("functions.") if is_call else ""
        self._gap = "\n\n" if self._kind in self._told else ""
        self._head = None

    @property
    def _kind(self) -> str:
        return "thoughts" if self._channel == "analysis" else "text"

    def _say(self, text: str, events: list[Event]) -> None:
        text, self._gap = self._gap + text, ""
        self._told.add(self._kind)
        make = ReasoningDelta if self._kind == "thoughts" else TextDelta
        events.append(make(text))

    def _end(self, events: list[Event], cut_off: str | None) -> None:
        """End a body; a call is complete then. `cut_off`: why it may not be."""
        if not self._recipient:
            return
        if not self._has_tools:
            self._give_up("no tools were offered", events)
            return
        reading = read_arguments(self._recipient, "".join(self._call), True)
        if isinstance(reading, str | Malformed):
            reason = reading.reason if isinstance(reading, Malformed) else reading
            self._give_up(cut_off or reason, events)
            return
        events.extend(self._log.events(reading))
        self._forget_call()

    def _give_up(self, reason: str, events: list[Event]) -> None:
        """Show a call that is none, or a head that is none, as text; more of it may follow."""
        self._channel = "final"
        self._told.add("text")
        if self._head is not None:
            events.append(TextDelta(self._head))
            self._head = None
        else:
            events.extend(shown_as_text("".join(self._call), reason))
        self._forget_call()

    def _forget_call(self) -> None:
        self._call.clear()
        self._length, self._recipient = 0, ""


def call_rules(tool: Tool, index: int, marker: Marker) -> str:
    """Return a Lark rule for a call of one tool."""
    head = f"{marker(CHANNEL)} {quoted(f'commentary to=functions.{tool.name} ')}"
    kind = f'{marker(CONSTRAIN)} "json" {marker(MESSAGE)}'
    return f"call_{index}: {head} {kind} %json {arguments_schema(tool)}\n"


def final_rules(answer: str, marker: Marker) -> str:
    """Return Lark rules for an answer; `answer` is a term for its text."""
    return f'final: {marker(CHANNEL)} "final" {marker(MESSAGE)} {answer}\n'


def start_rules(wanted: str, marker: Marker) -> str:
    """Return the first Lark rules: thoughts as long as the model likes, and then what is wanted."""
    end = marker(END)
    if not end.startswith("<"):
        return f"start: {wanted}\n"
    head = f'{marker(CHANNEL)} "analysis" {marker(MESSAGE)}'
    thoughts = f'thoughts: {head} /(?s:.*)/ {end} {marker(START)} "assistant"\n'
    return f"start: thoughts? ({wanted})\n{thoughts}"
