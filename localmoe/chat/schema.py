"""JSON schemas as llguidance reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from localmoe.errors import ConstraintError

SHARED = ("$defs", "definitions")
"""Parts of a schema that others within it refer to."""

# Without a bound small models fill an answer with space.
_STYLE = {"whitespace_pattern": r"[ \n]{0,24}"}


def schema_text(schema: Mapping[str, Any]) -> str:
    """Return a schema as JSON text; an empty one allows any object. Raises ConstraintError."""
    try:
        return json.dumps({**(schema or {"type": "object"}), "x-guidance": _STYLE})
    except (TypeError, ValueError, RecursionError) as error:
        raise ConstraintError(f"a JSON schema is not JSON: {error}") from error
