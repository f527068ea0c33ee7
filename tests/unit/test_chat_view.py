"""What a person sees while an answer is being given, on a screen of known size."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from localmoe.cli.markdown import ChatMarkdown, blocks_of, split_finished
from localmoe.cli.render import AnswerView, MarkdownView, PlainView
from localmoe.cli.terminal import without_controls

ANSWER = """# Title

Words with **bold** and <b>tags</b>.
A second line.

1. one
2. two

   inside two
3. three

| a | b |
|---|---|
| 1 | 2 |

```python
def f():

    return "```"
```

- item
  - nested

> quote

The end.
"""


class Screen(io.StringIO):
    """Just enough of a terminal: text, newlines, cursor up, erase line."""

    def __init__(self) -> None:
        super().__init__()
        self.lines, self.row, self.highest = [""], 0, 0

    def write(self, text: str) -> int:
        for part in re.split(r"(\x1b\[[0-9;?]*[A-Za-z]|\n)", text):
            if part == "\n":
                self.row += 1
                if self.row == len(self.lines):
                    self.lines.append("")
            elif part.endswith("A") and part.startswith("\x1b"):
                self.row -= 1
            elif part == "\x1b[2K":
                self.lines[self.row] = ""
            elif not part.startswith("\x1b"):
                self.lines[self.row] += part
        return super().write(text)

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines).rstrip("\n")


def shown(
    pieces: list[str], height: int = 40, monkeypatch: pytest.MonkeyPatch | None = None
) -> Screen:
    screen = Screen()
    console = Console(file=screen, force_terminal=True, width=60, height=height, no_color=True)
    with MarkdownView(console) as view:
        for piece in pieces:
            view._next_drawing = 0  # draw each time
            view.write(piece)
    return screen


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, len(ANSWER)), max_size=30), st.sampled_from([4, 40]))
def test_any_cutting_of_an_answer_ends_in_the_same_screen(cuts: list[int], height: int) -> None:
    marks = sorted({0, len(ANSWER), *cuts})
    pieces = [ANSWER[a:b] for a, b in zip(marks, marks[1:], strict=False)]
    assert shown(pieces, height).text == shown([ANSWER]).text


def test_the_whole_answer_is_on_the_screen_and_lines_are_kept() -> None:
    text = shown(list(ANSWER)).text
    for line in ("Title", "Words with bold and <b>tags</b>.", "A second line.", "The end."):
        assert line in text.split("\n")
    assert "inside two" in text
    assert 'return "```"' in text
    assert "\n\n\n" not in text


def test_blocks_stand_one_line_apart_from_the_first_drawing_on() -> None:
    assert shown(["one\n\ntw"]).text == shown(["one\n\n", "tw"]).text == "one\n\ntw"


def test_of_a_block_higher_than_the_screen_its_end_is_drawn() -> None:
    screen = Screen()
    console = Console(file=screen, force_terminal=True, width=60, height=10, no_color=True)
    view = MarkdownView(console)
    with view:
        view.write("".join(f"- item {i}\n" for i in range(30)) + "- last")
        assert len(screen.text.split("\n")) == 8
        assert screen.text.endswith("last")
    assert [f"• item {i}" in screen.text for i in range(30)] == [True] * 30


def test_progress_vanishes_when_the_answer_begins() -> None:
    screen = Screen()
    console = Console(file=screen, force_terminal=True, width=60, height=10)
    with MarkdownView(console) as view:
        view.progress("prompt", 10, 40)
        assert screen.text == "reading the prompt, 10 of 40 tokens"
        view.progress("prompt", 40, 40)
        view.write("Hello")
    assert screen.text == "Hello"


def test_a_model_cannot_steer_the_terminal() -> None:
    assert without_controls("a\x1b[2Jb\x07\x9b31m\r\nc\td\x7f\udc80") == "a[2Jb31m\nc\td"
    assert "\x1b]0;" not in shown(["title \x1b]0;evil\x07 end"]).getvalue()


@pytest.mark.parametrize(
    ("text", "finished"),
    [
        ("one", ""),
        ("one\ntwo\n", ""),
        ("one\n\ntwo", "one\n\n"),
        ("```\na\n\nb\n", ""),
        ("```\na\n```\nx", "```\na\n```\n"),
        ("- a\n\n- b\n", ""),
        ("- a\n\nb", "- a\n\n"),
        ("a\u2028b\n\nc", "a\u2028b\n\n"),
    ],
)
def test_only_what_can_no_longer_change_is_finished(text: str, finished: str) -> None:
    assert split_finished(text) == (finished, text[len(finished) :])


@given(st.text(alphabet="ab`-#>|\n 1.*", max_size=60))
def test_blocks_joined_are_the_text(text: str) -> None:
    assert "".join(blocks_of(text)) == (text if blocks_of(text) else "")
    assert "".join(split_finished(text)) == text


def test_markdown_shows_html_as_text() -> None:
    console = Console(file=io.StringIO(), width=60)
    with console.capture() as capture:
        console.print(ChatMarkdown("<think>\nhm\n</think>\n\nyes"))
    assert [line.rstrip() for line in capture.get().split("\n")] == [
        "<think>", "hm", "</think>", "", "yes", "",
    ]  # fmt: skip


def thinking_then_answering(view: AnswerView) -> None:
    with view:
        for piece in ("Hm, \n", "\n", "let me ", "see"):
            view.think(piece)
        view.write("Yes.")


def test_thoughts_are_dim_on_a_terminal_and_stand_before_the_answer() -> None:
    screen = Screen()
    console = Console(file=screen, force_terminal=True, width=60, height=10)
    thinking_then_answering(MarkdownView(console))
    assert screen.text == "Hm,\n\nlet me see\n\nYes."
    written = io.StringIO()
    colours = Console(file=written, force_terminal=True, width=60, color_system="standard")
    thinking_then_answering(MarkdownView(colours))
    assert "\x1b[2mlet me see" in written.getvalue()
    assert "\x1b[2mYes" not in written.getvalue()


def test_thoughts_that_are_hidden_leave_nothing() -> None:
    screen = Screen()
    console = Console(file=screen, force_terminal=True, width=60, height=10)
    view = MarkdownView(console, shows_thoughts=False)
    view.think("Hm")
    assert screen.text == "thinking"
    thinking_then_answering(view)
    assert screen.text == "Yes."


@pytest.mark.parametrize("cuts", [1, 3, 100])
def test_thoughts_in_any_pieces_end_in_the_same_screen(cuts: int) -> None:
    screen, text = Screen(), "one two three\n\nfour " * 12
    console = Console(file=screen, force_terminal=True, width=20, height=6, no_color=True)
    with MarkdownView(console) as view:
        for start in range(0, len(text), cuts):
            view._next_drawing = 0
            view.think(text[start : start + cuts])
    assert screen.text.split() == text.split()
    assert screen.text.count("\n\n") == 12


def test_an_answer_of_thoughts_alone_is_shown() -> None:
    screen = Screen()
    console = Console(file=screen, force_terminal=True, width=60, height=10)
    with MarkdownView(console) as view:
        view.think("Hm\x1b[2J")
    assert screen.text == "Hm[2J"


def test_a_pipe_gets_thoughts_only_if_asked_and_between_tags() -> None:
    thoughts = "<think>\nHm, \n\nlet me see\n</think>\n\n"
    for is_shown in (False, True):
        stream = io.StringIO()
        thinking_then_answering(PlainView(stream, shows_thoughts=is_shown))
        assert stream.getvalue() == (thoughts if is_shown else "") + "Yes.\n"
    stream = io.StringIO()
    with PlainView(stream, shows_thoughts=True) as view:
        view.think("Hm")
    assert stream.getvalue() == "<think>\nHm\n</think>\n"


@pytest.mark.parametrize("pieces", [["a", "b"], ["a", "b\n"]])
def test_a_pipe_gets_the_text_as_it_is_and_one_newline(pieces: list[str]) -> None:
    stream = io.StringIO()
    with PlainView(stream) as view:
        view.progress("prompt", 1, 2)
        for piece in pieces:
            view.write(piece)
    assert stream.getvalue() == "ab\n"
