"""How an answer appears: as it is in a pipe, as rendered Markdown on a terminal."""

from __future__ import annotations

import time
from typing import Protocol, Self, TextIO

from rich.console import Console, ConsoleOptions, RenderResult
from rich.control import Control
from rich.segment import ControlType, Segment
from rich.style import Style
from rich.text import Text

from localmoe.cli.markdown import ChatMarkdown, blocks_of, split_finished
from localmoe.cli.terminal import console_for, without_controls

_SECONDS_BETWEEN_DRAWINGS = 0.08


class AnswerView(Protocol):
    """Shows one answer while it is being given; leave the block when it has ended."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def progress(self, stage: str, done: int, total: int) -> None:
        """Say how much of the prompt has been read."""
        ...

    def think(self, piece: str) -> None:
        """Add a piece of the thoughts that come before it."""
        ...

    def write(self, piece: str) -> None:
        """Add a piece of the answer."""
        ...


def view_for(stream: TextIO, shows_thoughts: bool | None = None) -> AnswerView:
    """Return the view that suits a stream; thoughts are shown on terminals, if nobody says else."""
    console = console_for(stream)
    if console.is_terminal and not console.is_dumb_terminal:
        return MarkdownView(console, shows_thoughts=shows_thoughts is not False)
    return PlainView(stream, shows_thoughts=bool(shows_thoughts))


class PlainView:
    """The text itself, piece by piece, with one newline at its end.

    Thoughts are left out, or stand before the answer between tags.
    """

    def __init__(self, stream: TextIO, *, shows_thoughts: bool = False) -> None:
        self._stream = stream
        self._ends_line = True
        self._shows_thoughts, self._thinks = shows_thoughts, False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_thoughts("\n")
        if not self._ends_line:
            self._put("\n")

    def progress(self, stage: str, done: int, total: int) -> None:
        """Nothing: a pipe holds the answer alone."""

    def think(self, piece: str) -> None:
        """Add a piece of the thoughts."""
        if self._shows_thoughts:
            self._put(piece if self._thinks else f"<think>\n{piece}")
            self._thinks = True

    def write(self, piece: str) -> None:
        """Add a piece of the answer."""
        self._end_thoughts("\n\n")
        self._put(piece)

    def _end_thoughts(self, gap: str) -> None:
        if self._thinks:
            self._put(f"\n</think>{gap}")
            self._thinks = False

    def _put(self, piece: str) -> None:
        self._stream.write(piece)
        self._stream.flush()
        self._ends_line = piece.endswith("\n")


class MarkdownView:
    """Finished blocks are printed for good; only the last, open one is drawn again and again.

    Of an open block that is higher than the screen, its end is shown; it appears whole when it is
    finished. So nothing is cut. Each change is one write, and no thread draws, so nothing flickers
    and the engine keeps its cores. Thoughts are dim text; hidden ones leave a word while they last.
    """

    def __init__(self, console: Console, *, shows_thoughts: bool = True) -> None:
        self._console = console
        self._shows_thoughts = shows_thoughts
        self._open = self._thought = ""
        self._has_printed = False
        self._drawn_lines = 0
        self._next_drawing = 0.0

    def __enter__(self) -> Self:
        self._console.show_cursor(False)
        return self

    def __exit__(self, *_: object) -> None:
        self._end_thought()
        self._draw(self._rendered(self._open))
        self._console.show_cursor(True)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Say how much of the prompt has been read."""
        if done < total:
            self._note(f"reading the prompt, {done} of {total} tokens")

    def think(self, piece: str) -> None:
        """Add a piece of the thoughts; whole lines of them are printed for good."""
        now = time.monotonic()
        if not self._shows_thoughts:
            if now >= self._next_drawing:
                self._note("thinking")
                self._next_drawing = now + _SECONDS_BETWEEN_DRAWINGS
            return
        lines, newline, self._thought = (self._thought + without_controls(piece)).rpartition("\n")
        if newline or now >= self._next_drawing:
            self._draw(
                (self._dimmed(lines) or [[]]) if newline else [], self._dimmed(self._thought)
            )
            self._next_drawing = now + _SECONDS_BETWEEN_DRAWINGS

    def write(self, piece: str) -> None:
        """Add a piece of the answer."""
        self._end_thought()
        self._open += without_controls(piece)
        finished = ""
        if "\n" in piece:
            finished, self._open = split_finished(self._open)
        now = time.monotonic()
        if finished or now >= self._next_drawing:
            lines = self._rendered(finished)
            self._has_printed = self._has_printed or bool(lines)
            self._draw(lines, self._rendered(self._open))
            self._next_drawing = now + _SECONDS_BETWEEN_DRAWINGS

    def _end_thought(self) -> None:
        if self._thought:
            lines, self._thought = self._dimmed(self._thought), ""
            self._draw(lines)

    def _note(self, text: str) -> None:
        self._draw([], [[Segment(text, Style(dim=True))]])

    def _draw(self, lines: list[list[Segment]], live: list[list[Segment]] | None = None) -> None:
        """Replace what was drawn last by finished lines, which stay, and by what may change."""
        self._has_printed = self._has_printed or bool(lines)
        room = max(self._console.height - 2, 1)
        tail = (live or [])[-room:]
        erase = (ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)
        frame = _Frame(Control(*erase * self._drawn_lines).segment, lines + tail)
        self._console.print(frame, end="")
        self._drawn_lines = len(tail)

    def _dimmed(self, text: str) -> list[list[Segment]]:
        return self._console.render_lines(Text(text, style="dim"), pad=False) if text else []

    def _rendered(self, text: str) -> list[list[Segment]]:
        """Return the lines of a text, with one empty line before each block but the very first."""
        lines: list[list[Segment]] = []
        for block in blocks_of(text):
            drawn = self._console.render_lines(ChatMarkdown(block), pad=False)
            filled = [i for i, line in enumerate(drawn) if any(each.text.strip() for each in line)]
            if filled:
                lines += [[]] if lines or self._has_printed else []
                lines += map(_without_padding, drawn[filled[0] : filled[-1] + 1])
        return lines


def _without_padding(line: list[Segment]) -> list[Segment]:
    """Drop the spaces that Rich puts at the ends of lines: who copies text would copy them."""
    end = len(line)
    while end and not line[end - 1].text.strip():
        end -= 1
    return [*line[: end - 1], Segment(line[end - 1].text.rstrip(), line[end - 1].style)][-end:]


class _Frame:
    def __init__(self, control: Segment, lines: list[list[Segment]]) -> None:
        self._control, self._lines = control, lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._control
        for line in self._lines:
            yield from line
            yield Segment.line()
