"""A Jinja environment for templates that nobody has checked.

Jinja's sandbox keeps a template away from Python's internals, but not from time and memory. Here
everything in a template that can repeat or grow draws on an allowance: loop rounds, calls,
characters made by operators, filters and captured blocks, and seconds.

What remains: the seconds are looked at in loops, calls and operators only, so one slow step (a
comparison of lists that hold each other, a sort) runs to its end first.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from localmoe.chat.allowance import Allowance, TemplateLimits

_EACH = "localmoe_each"
_CONCAT = "localmoe_concat"
_REFUSED_FILTERS = (
    *("batch", "center", "filesizeformat", "pprint", "random", "slice"),
    *("striptags", "urlencode", "urlize", "wordwrap", "xmlattr"),
)
_PADDING_METHODS = frozenset(("center", "ljust", "rjust", "zfill", "expandtabs", "translate"))
_QUEUE_METHODS = frozenset(("append", "pop"))
_WIDE = re.compile(r"\d{4,}|\*")
_MAX_INTEGER_BITS = 4096
_CALL_STEPS = 20


class GenerationTag(Extension):
    """`{% generation %}` marks the assistant's words for training; here it does nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return what stands between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with an allowance. Renders one template at a time, in any thread."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, limits: TemplateLimits) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            # Folding constants would run filters before there is an allowance.
            optimized=False,
            extensions=("jinja2.ext.loopcontrols", GenerationTag),
            finalize=self._finalize,
        )
        self._rendering = threading.Lock()
        self._limits = limits
        self._allowance = Allowance(limits)
        self._given: frozenset[int] = frozenset()
        self.concat = self._join_pieces  # type: ignore[method-assign]
        self.globals.pop("lipsum")
        for name in _REFUSED_FILTERS:
            self.filters.pop(name)
        self.filters.update(
            {
                _EACH: self._each,
                _CONCAT: self._concat,
                "format": self._format,
                "from_json": self._from_json,
                "indent": self._indent,
                "join": self._join,
                "list": self._list,
                "replace": self._replace,
                "string": self._string,
                "sum": self._sum,
                "tojson": self._tojson,
            }
        )

    def load_source(self, source: str) -> Template:
        """Compile a template whose loops and concatenations draw on the allowance."""
        tree = self.parse(source)
        for loop in tree.find_all(nodes.For):
            loop.iter = _filtered(loop.iter, _EACH)
        _replace_concatenations(tree)
        code = self.compile(tree)
        return Template.from_code(self, code, self.make_globals(None))

    def render(self, template: Template, variables: dict[str, Any]) -> str:
        """Render with a fresh allowance. Raises whatever the template raises."""
        pieces: list[str] = []
        # Two at once would draw on one allowance, and change lists that were given to the other.
        with self._rendering:
            self._allowance = Allowance(self._limits)
            self._given = _list_ids(variables)
            for piece in template.generate(variables):
                self._allowance.take_characters(len(piece))
                self._allowance.take_steps(1)
                pieces.append(piece)
        return "".join(pieces)

    def call(self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call something from a template."""
        self._allowance.take_steps(_CALL_STEPS)
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str) and name == "join" and len(args) == 1:
            return self._join(args[0], owner)
        if isinstance(owner, str) and name == "replace":
            self._check_replace(owner, *args)
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator whose result can be much larger than its operands."""
        self._allowance.take_steps(1)
        if operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            self._allowance.take_characters(len(left) + len(right))
        elif operator == "%" and isinstance(left, str):
            self._check_format(left, right)
        elif operator == "*":
            self._check_product(left, right)
        elif operator == "**":
            _check_power(left, right)
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Refuse what Jinja refuses, and methods that pad a text to any length.

        Lists that a template has made itself may grow and shrink by one: some keep a queue.
        """
        if isinstance(obj, str) and attr in _PADDING_METHODS:
            return False
        if type(obj) is list and attr in _QUEUE_METHODS and id(obj) not in self._given:
            return True
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Let `str.format` through only where no field asks for a large width."""
        formatted = super().wrap_str_format(value)
        if formatted is None:
            return None

        def bounded(*args: Any, **kwargs: Any) -> str:
            self._check_format(value.__self__, [args, kwargs])
            return formatted(*args, **kwargs)

        return bounded

    def _each(self, values: Any) -> Any:
        if hasattr(values, "__len__"):
            self._allowance.take_steps(len(values) + 1)
            return values
        return self._counted(values)

    def _counted(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self._allowance.take_steps(1)
            yield value

    def _concat(self, values: list[Any]) -> str:
        self._allowance.take_value(values)
        return "".join(map(str, values))

    def _join_pieces(self, pieces: Iterable[str]) -> str:
        kept = list(pieces)
        self._allowance.take_characters(sum(map(len, kept)))
        return "".join(kept)

    def _finalize(self, value: Any) -> Any:
        if not isinstance(value, str):
            self._allowance.take_value(value)
        return value

    def _format(self, value: str, *args: Any, **kwargs: Any) -> str:
        self._check_format(value, [args, kwargs])
        return str(value) % (kwargs or args)

    def _indent(
        self, text: str, width: int | str = 4, first: bool = False, blank: bool = False
    ) -> str:
        columns = len(width) if isinstance(width, str) else width
        self._allowance.take_characters(len(text) + (text.count("\n") + 1) * columns)
        indented: str = FILTERS["indent"](text, width, first, blank)
        return indented

    def _join(self, values: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
        items = list(self._counted(values))
        if attribute is not None:
            items = list(map(make_attrgetter(self, attribute), items))
        self._allowance.take_value(items)
        self._allowance.take_characters(len(d) * len(items))
        return d.join(map(str, items))

    def _list(self, values: Iterable[Any]) -> list[Any]:
        return list(self._counted(values))

    def _sum(self, values: Iterable[Any], attribute: str | None = None, start: Any = 0) -> Any:
        # Adding up lists would copy them over and over.
        if not isinstance(start, (int, float)):
            raise SecurityError("sum: only numbers can be added up")
        return FILTERS["sum"](self, self._counted(values), attribute, start)

    def _replace(self, text: str, old: str, new: str, count: int | None = None) -> str:
        limit = -1 if count is None else count
        self._check_replace(text, old, new, limit)
        return str(text).replace(old, new, limit)

    def _string(self, value: Any) -> str:
        self._allowance.take_value(value)
        return str(value)

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # Jinja's own filter escapes HTML; models were trained on JSON as it is.
        if isinstance(value, Iterator):
            value = list(self._counted(value))
        self._allowance.take_value(value)
        if indent is not None and indent > 16:
            raise SecurityError("tojson: indent must be at most 16")
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    def _from_json(self, text: str) -> Any:
        self._allowance.take_characters(_CALL_STEPS * len(text))
        return json.loads(text)

    def _check_replace(self, text: str, old: str, new: str, limit: int = -1) -> None:
        found = str(text).count(old)
        times = found if limit < 0 else min(found, limit)
        self._allowance.take_characters(len(text) + times * len(new))

    def _check_format(self, text: str, values: Any) -> None:
        if _WIDE.search(str(text)):
            raise SecurityError("a format in the template asks for a width of 1000 or more")
        self._allowance.take_characters(len(text))
        # A text may name the same value in every field.
        for _ in range(text.count("{") + text.count("%") + 1):
            self._allowance.take_value(values)

    def _check_product(self, left: Any, right: Any) -> None:
        if isinstance(left, int) and isinstance(right, int):
            if left.bit_length() + right.bit_length() > _MAX_INTEGER_BITS:
                raise SecurityError("an integer in the template is too large")
            return
        for value, times in ((left, right), (right, left)):
            if hasattr(value, "__len__") and isinstance(times, int):
                self._allowance.take_characters(len(value) * max(times, 0))


def _check_power(left: Any, right: Any) -> None:
    both = isinstance(left, int) and isinstance(right, int)
    if both and left.bit_length() * abs(right) > _MAX_INTEGER_BITS:
        raise SecurityError("an integer in the template is too large")


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _replace_concatenations(node: nodes.Node) -> None:
    """Put our filter in place of every `a ~ b` below a node."""
    for field, value in node.iter_fields():
        if isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, nodes.Node):
                    value[index] = _bounded_concatenation(item)
        elif isinstance(value, nodes.Node):
            setattr(node, field, _bounded_concatenation(value))


def _bounded_concatenation(node: nodes.Node) -> nodes.Node:
    _replace_concatenations(node)
    if isinstance(node, nodes.Concat):
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), _CONCAT)
    return node


def _list_ids(value: Any) -> frozenset[int]:
    """Return the ids of all lists in what a template is given."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, list) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend(item)
    return frozenset(seen)
