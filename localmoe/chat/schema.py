"""JSON schemas as llguidance reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from localmoe.errors import ConstraintError

SHARED = ("$defs", "definitions")
"""Parts of a schema that others within it refer to."""

_MAX_MULTIPLE = 10_000
"""Numbers are held to a multiple by an automaton with about so many states."""
_MULTIPLES = re.compile(r'"multipleOf": -?(\d+)(?:\.(\d+))?(e\+)?')

# Without a bound small models fill an answer with space.
_STYLE = {"whitespace_pattern": r"[ \n]{0,24}"}


def schema_text(schema: Mapping[str, Any]) -> str:
    """Return a schema as JSON text; an empty one allows any object. Raises ConstraintError."""
    try:
        text = json.dumps({**(schema or {"type": "object"}), "x-guidance": _STYLE})
    except (TypeError, ValueError, RecursionError) as error:
        raise ConstraintError(f"a JSON schema is not JSON: {error}") from error
    for digits, point, power in _MULTIPLES.findall(text):
        if power or int((digits + point)[:18]) > _MAX_MULTIPLE:
            raise ConstraintError(
                f"a JSON schema asks for a multipleOf with more digits than {_MAX_MULTIPLE}: "
                "leave it out, or make it a rounder number"
            )
    return text
