"""Arguments of calls, as text and as objects."""

from __future__ import annotations

import json
from typing import Any


def json_text(value: Any) -> str:
    """Return a value as JSON."""
    return json.dumps(value, ensure_ascii=False)


def arguments_object(text: str) -> dict[str, Any]:
    """Return a call's arguments as an object; {} where a call was cut short."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
