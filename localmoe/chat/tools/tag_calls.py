"""Syntaxes in which each argument stands in tags of its own: qwen3_coder, GLM, DeepSeek's DSML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from localmoe.chat.messages import Tool
from localmoe.chat.tools.arguments import object_text, read_json, schema_of, typed
from localmoe.chat.tools.format import Call, Malformed, Marker, Reading, inner
from localmoe.chat.tools.json_calls import checked_name
from localmoe.chat.tools.scanning import MarkerScanner, Scanner
from localmoe.chat.tools.tag_rules import TagRules, takes_text

_DSML = "｜DSML｜"  # noqa: RUF001


class _Unfinished(Exception):
    """A tag is missing that may still come."""


class Cursor:
    """A place in a text."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def skip_space(self) -> Cursor:
        """Go on to what is no space."""
        rest = len(self._text)
        while self._at < rest and self._text[self._at].isspace():
            self._at += 1
        return self

    def take(self, expected: str) -> bool:
        """Go behind a text if it comes next."""
        found = self._text.startswith(expected, self._at)
        self._at += len(expected) if found else 0
        return found

    def until(self, *closings: str) -> str:
        """Return what comes before the first of some texts, and go behind it."""
        found = [(self._text.find(each, self._at), each) for each in closings]
        at, closing = min(((at, each) for at, each in found if at >= 0), default=(-1, ""))
        if at < 0:
            raise _Unfinished
        before = self._text[self._at : at]
        self._at = at + len(closing)
        return before

    def rest(self) -> str:
        """Return all that follows."""
        return self._text[self._at :]

    def value(self, closing: str, *followers: str) -> str:
        """Return a text up to a closing tag that one of some texts, or nothing, follows.

        So a value may hold the tag itself.
        """
        start = end = self._at
        while True:
            end = self._text.find(closing, end)
            if end < 0:
                raise _Unfinished
            self._at = end + len(closing)
            self.skip_space()
            if self.is_over or any(self._text.startswith(each, self._at) for each in followers):
                return self._text[start:end]
            end += 1

    @property
    def is_over(self) -> bool:
        """Whether nothing follows."""
        return self._at >= len(self._text)


class QwenCoder:
    """<tool_call><function=f><parameter=p>value</parameter></function></tool_call>."""

    # The model sometimes forgets the outer tag.
    openings = ("<tool_call>", "<function=")
    silent = ("</tool_call>",)
    first: tuple[str, ...] = ()
    markers = frozenset(("<tool_call>", "</tool_call>"))

    def scanner(self, opening: str) -> Scanner:
        """Return what finds the closing tag."""
        return MarkerScanner("</tool_call>" if opening == "<tool_call>" else "</function>")

    def read(self, block: str, tools: Sequence[Tool], is_over: bool) -> Reading:
        """Read one function or more."""
        body = inner(block, "<tool_call>", "</tool_call>")
        if body.lstrip().startswith("{"):
            return Malformed("it is JSON where tags were expected")
        return _read(self._calls, Cursor(body), tools, is_over)

    def _calls(self, text: Cursor, tools: Sequence[Tool]) -> list[Call]:
        calls: list[Call] = []
        while not text.skip_space().is_over:
            if not text.take("<function="):
                raise ValueError("<function=...> was expected")
            name = checked_name(text.until(">"))
            values = []
            while text.skip_space().take("<parameter="):
                key = text.until(">").strip()
                value = text.value("</parameter>", "<parameter=", "</function>")
                values.append((key, value.removeprefix("\n").removesuffix("\n")))
            if not text.take("</function>"):
                if text.is_over:
                    raise _Unfinished
                raise ValueError("</function> was expected")
            calls.append(Call(name, object_text(typed(values, schema_of(tools, name)))))
        return calls

    def grammar(self, tool: Tool, index: int, marker: Marker) -> str:
        """Return rules for a call of one tool."""
        rules = TagRules(tool, index, marker)
        for key, _ in rules.parameters:
            rules.add(key, (f"<parameter={key}>\n",), ("\n</parameter>\n",))
        head = ("<tool_call>", f"\n<function={tool.name}>\n")
        return rules.written(head, ("</function>\n", "</tool_call>"))


class Glm:
    """<tool_call>f<arg_key>k</arg_key><arg_value>v</arg_value></tool_call>."""

    openings = ("<tool_call>",)
    silent: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    markers = frozenset(
        ("<tool_call>", "</tool_call>") + ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
    )

    def __init__(self, *, lines: bool = False) -> None:
        """`lines`: the model was trained to put each tag on a line; both are read."""
        self._end = "\n" if lines else ""

    def scanner(self, opening: str) -> Scanner:
        """Return what finds the closing tag."""
        return MarkerScanner("</tool_call>")

    def read(self, block: str, tools: Sequence[Tool], is_over: bool) -> Reading:
        """Read a name, and keys with their values."""
        body = inner(block, "<tool_call>", "</tool_call>")
        return _read(self._calls, Cursor(body), tools, is_over)

    def _calls(self, text: Cursor, tools: Sequence[Tool]) -> list[Call]:
        try:
            name = checked_name(text.until("<arg_key>").strip())
        except _Unfinished:
            # A call without arguments.
            name = checked_name(text.rest().strip())
            return [Call(name, "{}")]
        values = []
        while True:
            key = text.until("</arg_key>").strip()
            if not text.skip_space().take("<arg_value>"):
                raise ValueError("<arg_value> was expected")
            values.append((key, text.value("</arg_value>", "<arg_key>")))
            if text.is_over:
                return [Call(name, object_text(typed(values, schema_of(tools, name))))]
            text.take("<arg_key>")

    def grammar(self, tool: Tool, index: int, marker: Marker) -> str:
        """Return rules for a call of one tool."""
        rules, end = TagRules(tool, index, marker), self._end
        for key, _ in rules.parameters:
            before = ("<arg_key>", key, "</arg_key>", end, "<arg_value>")
            rules.add(key, before, ("</arg_value>", end))
        return rules.written(("<tool_call>", tool.name + end), ("</tool_call>",))


class Dsml:
    """DeepSeek V3.2 and later: an invoke tag with a parameter tag for each argument."""

    openings = (f"<{_DSML}invoke",)
    silent = (f"<{_DSML}function_calls>", f"</{_DSML}function_calls>") + (
        (f"<{_DSML}tool_calls>", f"</{_DSML}tool_calls>")
    )
    first: tuple[str, ...] = ()
    markers = frozenset((_DSML,))

    def __init__(self, block: str = "tool_calls") -> None:
        """`block`: what the model was trained to write around its calls; both are read."""
        self._block = block

    def scanner(self, opening: str) -> Scanner:
        """Return what finds the closing tag."""
        return MarkerScanner(f"</{_DSML}invoke>")

    def read(self, block: str, tools: Sequence[Tool], is_over: bool) -> Reading:
        """Read one call."""
        return _read(self._calls, Cursor(block), tools, is_over)

    def _calls(self, text: Cursor, tools: Sequence[Tool]) -> list[Call]:
        text.take(self.openings[0])
        if not text.skip_space().take('name="'):
            raise ValueError("it does not say which tool it calls")
        name = checked_name(text.until('">'))
        values: dict[str, Any] = {}
        opening, closing = f"<{_DSML}parameter", f"</{_DSML}parameter>"
        while text.skip_space().take(opening):
            text.skip_space().take('name="')
            key, _, kind = text.until(">").partition('"')
            value = text.value(closing, opening, f"</{_DSML}invoke>")
            values[key] = value if 'string="false"' not in kind else _json_or_text(value)
        if not text.take(f"</{_DSML}invoke>"):
            raise _Unfinished if text.is_over else ValueError("a parameter tag was expected")
        return [Call(name, object_text(values))]

    def grammar(self, tool: Tool, index: int, marker: Marker) -> str:
        """Return rules for a call of one tool."""
        rules = TagRules(tool, index, marker)
        for key, schema in rules.parameters:
            kind = "true" if takes_text(schema) else "false"
            tag = f'parameter name="{key}" string="{kind}">'
            rules.add(key, ("<", _DSML, tag), ("</", _DSML, "parameter>\n"))
        head = ("<", _DSML, f"{self._block}>\n<", _DSML, f'invoke name="{tool.name}">\n')
        tail = ("</", _DSML, "invoke>\n</", _DSML, f"{self._block}>")
        return rules.written(head, tail)


def _read(
    read: Callable[[Cursor, Sequence[Tool]], list[Call]],
    text: Cursor,
    tools: Sequence[Tool],
    is_over: bool,
) -> Reading:
    """Turn what a reader raises into what it means."""
    try:
        return read(text, tools) or Malformed("it is empty")
    except _Unfinished:
        return Malformed("a closing tag is missing") if is_over else "unfinished"
    except ValueError as error:
        return Malformed(str(error))


def _json_or_text(text: str) -> Any:
    try:
        return read_json(text)
    except ValueError:
        return text
