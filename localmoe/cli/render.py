"""How an answer appears: as it is in a pipe, as rendered Markdown on a terminal."""

from __future__ import annotations

from typing import Protocol, Self, TextIO

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.spinner import Spinner
from rich.text import Text

from localmoe.cli.markdown import ChatMarkdown, split_finished
from localmoe.cli.terminal import console_for, without_controls

_REFRESHES_PER_SECOND = 8


class AnswerView(Protocol):
    """Shows one answer while it is being given; leave the block when it has ended."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def progress(self, stage: str, done: int, total: int) -> None:
        """Say how much of the prompt has been read."""
        ...

    def write(self, piece: str) -> None:
        """Add a piece of the answer."""
        ...


def view_for(stream: TextIO) -> AnswerView:
    """Return the view that suits a stream."""
    return MarkdownView(console_for(stream)) if stream.isatty() else PlainView(stream)


class PlainView:
    """The text itself, piece by piece, with one newline at its end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._ends_line = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._ends_line:
            self.write("\n")

    def progress(self, stage: str, done: int, total: int) -> None:
        """Nothing: a pipe holds the answer alone."""

    def write(self, piece: str) -> None:
        """Add a piece of the answer."""
        self._stream.write(piece)
        self._stream.flush()
        self._ends_line = piece.endswith("\n")


class MarkdownView:
    """Finished blocks are printed for good; only the last, open one is drawn again and again.

    Of an open block that is higher than the screen, its end is shown; it appears whole when it is
    finished. So nothing flickers and nothing is cut.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._open = ""
        self._has_printed = False
        self._waiting = "reading the prompt"
        self._spinner = Spinner("dots", style="dim")
        self._live = Live(
            get_renderable=self._render,
            console=console,
            transient=True,
            refresh_per_second=_REFRESHES_PER_SECOND,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        rest, self._open, self._waiting = self._open, "", ""
        self._live.stop()
        self._print(rest)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Say how much of the prompt has been read."""
        self._waiting = f"reading the prompt, {done} of {total} tokens"

    def write(self, piece: str) -> None:
        """Add a piece of the answer."""
        self._open += without_controls(piece)
        if "\n" in piece:
            finished, self._open = split_finished(self._open)
            self._print(finished)

    def _print(self, text: str) -> None:
        if text.strip():
            if self._has_printed:
                self._console.print()
            self._console.print(ChatMarkdown(text))
            self._has_printed = True

    def _render(self) -> RenderableType:
        if self._open.strip():
            return _Tail(self._open, self._has_printed)
        if self._waiting and not self._has_printed:
            self._spinner.update(text=Text(self._waiting, style="dim"))
            return self._spinner
        return Text("")


class _Tail:
    """As many of the last lines of an open block as the screen has room for."""

    def __init__(self, text: str, after_block: bool) -> None:
        self._text, self._after_block = text, after_block

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = max(console.height - 2, 1)
        lines = console.render_lines(ChatMarkdown(self._text), options, pad=False)
        if self._after_block:
            yield Segment.line()
        for line in lines[-height:]:
            yield from line
            yield Segment.line()
