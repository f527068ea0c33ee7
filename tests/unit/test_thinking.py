"""Thoughts between tags: where they begin, where they end, and what is no thought."""

from __future__ import annotations

import pytest

from chat_streams import events_of
from localmoe.chat.events import Event, ReasoningDelta, TextDelta
from localmoe.chat.parser import PlainParser
from localmoe.chat.thinking import BRACKETS, THINK, ThinkingParser, ThinkTags

THOUGHT, SAID = ReasoningDelta("a"), TextDelta("b")


def split(text: str, *, begun: bool = False, tags: ThinkTags = THINK) -> list[Event]:
    return events_of(ThinkingParser(tags, PlainParser(), begun=begun), text)


@pytest.mark.parametrize(
    ("text", "begun", "events"),
    [
        ("<think>a</think>b", False, [THOUGHT, SAID]),
        ("\n <think>\n\na\n</think>\n\nb", False, [THOUGHT, SAID]),
        ("a</think>b", True, [THOUGHT, SAID]),
        ("\n<think>\na</think>b", True, [THOUGHT, SAID]),
        ("<think></think>b", False, [SAID]),
        ("</think>b", True, [SAID]),
        ("a", True, [THOUGHT]),
        ("a </thi", True, [ReasoningDelta("a </thi")]),
        ("a</think>", True, [THOUGHT]),
        ("a</think>\n\n", True, [THOUGHT]),
        ("b", False, [SAID]),
        ("", False, []),
        ("  ", False, [TextDelta("  ")]),
        ("<thi", False, [TextDelta("<thi")]),
        ("  b", False, [TextDelta("  b")]),
        ("say <think> to think</think>", False, [TextDelta("say <think> to think</think>")]),
        ("a</think>b</think>c", True, [THOUGHT, TextDelta("b</think>c")]),
        ("a</think>  b", True, [THOUGHT, TextDelta("  b")]),
        ("a < b <", True, [ReasoningDelta("a < b <")]),
        ("a \n\n b</think>", True, [ReasoningDelta("a \n\n b")]),
    ],
)
def test_thoughts_are_told_apart(text: str, begun: bool, events: list[Event]) -> None:
    assert split(text, begun=begun) == events


def test_other_tags_are_others() -> None:
    assert split("[THINK]a[/THINK]b", tags=BRACKETS) == [THOUGHT, SAID]
    assert split("<think>a", tags=BRACKETS) == [TextDelta("<think>a")]


def test_the_parser_says_where_it_is() -> None:
    parser = ThinkingParser(THINK, PlainParser(), begun=False)
    assert (parser.in_reasoning, parser.constrainable, parser.opening) == (False, True, "<think>")
    parser.feed("<think>")
    assert (parser.in_reasoning, parser.constrainable, parser.opening) == (True, False, None)
    parser.feed("a</think>")
    assert (parser.in_reasoning, parser.constrainable, parser.opening) == (False, True, None)


def test_space_without_end_does_not_pile_up() -> None:
    for begun in (True, False):
        parser = ThinkingParser(THINK, PlainParser(), begun=begun)
        for _ in range(10_000):
            parser.feed(" ")
            assert len(parser._text) <= 300
