"""Grammars of calls whose arguments stand in tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from localmoe.chat.messages import Tool
from localmoe.chat.schema import SHARED, schema_text
from localmoe.chat.tools.arguments import value_kinds
from localmoe.chat.tools.format import Marker, quoted


def takes_text(schema: object) -> bool:
    """Whether a value of this schema is written as it is, not as JSON."""
    kinds = value_kinds(schema)
    return not kinds or kinds == ["string"]


class TagRules:
    """Collects the Lark rules for the arguments of one tool, in the order of its schema."""

    def __init__(self, tool: Tool, index: int, marker: Marker) -> None:
        """`marker` gives a term for any text: a control token if it is one, else a string."""
        self._schema, self._index, self._marker = tool.parameters, index, marker
        required = tool.parameters.get("required")
        self._required = required if isinstance(required, list) else []
        self._terms: list[str] = []
        self._rules: list[str] = []

    @property
    def parameters(self) -> list[tuple[str, Any]]:
        """Names of the arguments and their schemas."""
        properties = self._schema.get("properties")
        return list(properties.items()) if isinstance(properties, Mapping) else []

    def add(self, key: str, before: Sequence[str], after: Sequence[str]) -> None:
        """Add an argument between the texts of its tags."""
        name = f"value_{self._index}_{len(self._rules)}"
        schema = dict(self.parameters)[key]
        closing = self._sequence(after)
        if not takes_text(schema):
            self._rules.append(f"{name}: %json {self._schema_text(schema)}\n")
        elif isinstance(schema, Mapping) and isinstance(schema.get("enum"), list):
            values = " | ".join(quoted(str(value)) for value in schema["enum"])
            self._rules.append(f"{name}: {values}\n")
        elif " " not in closing and closing.startswith('"'):
            # The text ends with its closing tag, wherever that is found first.
            self._rules.append(f"{name}[suffix={closing}]: /(?s:.*)/\n")
            closing = ""
        elif closing.startswith("<"):
            # No text can run into a control token.
            self._rules.append(f"{name}: /(?s:.*)/\n")
        else:
            self._rules.append(f"{name}: /[^<]*/\n")
        term = f"{self._sequence(before)} {name} {closing}".strip()
        self._terms.append(term if key in self._required else f"({term})?")

    def written(self, head: Sequence[str], tail: Sequence[str]) -> str:
        """Return all rules, that of the call first."""
        terms = " ".join((self._sequence(head), *self._terms, self._sequence(tail)))
        return f"call_{self._index}: {terms}\n{''.join(self._rules)}"

    def _sequence(self, texts: Sequence[str]) -> str:
        """Return terms for texts that follow each other, strings joined to one."""
        terms: list[str] = []
        plain = ""
        for text in texts:
            term = self._marker(text) if text else ""
            if term.startswith("<"):
                terms += [quoted(plain)] if plain else []
                terms.append(term)
                plain = ""
            else:
                plain += text
        return " ".join(terms + ([quoted(plain)] if plain else []))

    def _schema_text(self, schema: Any) -> str:
        shared = {key: self._schema[key] for key in SHARED if key in self._schema}
        return schema_text({**shared, **schema})
