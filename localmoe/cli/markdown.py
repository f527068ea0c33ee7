"""Markdown as chat models write it."""

from __future__ import annotations

from typing import ClassVar

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown, MarkdownElement
from rich.syntax import Syntax

# Without HTML: tags such as <think> or <b> are text to show, not markup to hide.
_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])


class _LeftHeading(Heading):
    LEVEL_ALIGN: ClassVar[dict[str, JustifyMethod]] = {f"h{n}": "left" for n in range(1, 7)}


class _PlainCodeBlock(CodeBlock):
    """Code in the terminal's own colours, without the empty lines above and below."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = str(self.text).rstrip()
        yield Syntax(code, self.lexer_name, theme="ansi_dark", word_wrap=True, padding=(0, 2))


class ChatMarkdown(Markdown):
    """Rich's Markdown with every line break kept and all headings on the left."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "heading_open": _LeftHeading,
        "fence": _PlainCodeBlock,
        "code_block": _PlainCodeBlock,
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.parsed = _PARSER.parse(text)
        for token in self.parsed:
            for child in token.children or ():
                # Poems and addresses come with single newlines.
                if child.type == "softbreak":
                    child.type, child.tag = "hardbreak", "br"


def blocks_of(text: str) -> list[str]:
    """Cut text before each of its top-level blocks; joined they are the text again."""
    tokens = (token for token in _PARSER.parse(text) if token.level == 0 and token.nesting >= 0)
    starts = [token.map[0] for token in tokens if token.map]
    lines = text.split("\n")
    ends = [*starts[1:], len(lines)]
    cut = ["\n".join(lines[a:b]) for a, b in zip([0, *starts[1:]], ends, strict=False)]
    return [f"{block}\n" for block in cut[:-1]] + cut[-1:]


def split_finished(text: str) -> tuple[str, str]:
    """Split before the last top-level block, which may still grow; either part may be ""."""
    *finished, last = blocks_of(text) or [text]
    return "".join(finished), last
