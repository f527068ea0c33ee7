"""llama.cpp's log, kept for error messages and figures instead of printed."""

from __future__ import annotations

import re
from collections import deque

from localmoe.backends.llama.bindings import L

_KEPT_LINES = 400
_DEBUG_LEVEL, _ERROR_LEVEL, _CONTINUATION = 1, 4, 5  # GGML_LOG_LEVEL_*

_lines: deque[tuple[int, str]] = deque(maxlen=_KEPT_LINES)


def _record(level: int, text: bytes, _user: object) -> None:
    if level == _DEBUG_LEVEL:  # hundreds of lines for every graph
        return
    line = text.decode(errors="replace")
    if level == _CONTINUATION and _lines:
        _lines[-1] = (_lines[-1][0], _lines[-1][1] + line)
    else:
        _lines.append((level, line))


_callback = L.llama_log_callback(_record)


def clear() -> None:
    """Forget what was logged so far, and listen from now on.

    llama.cpp has one listener, and whoever imports llama-cpp-python's own engine becomes it.
    """
    _lines.clear()
    L.llama_log_set(_callback, None)


clear()


def lines() -> list[str]:
    """Return the last lines logged, debugging ones left out."""
    return [text.rstrip("\n") for _, text in _lines]


def last_error() -> str:
    """Return the most telling of the errors logged since `clear`, without its function name."""
    errors = [text.strip() for level, text in _lines if level == _ERROR_LEVEL]
    if not errors:
        return "llama.cpp gave no reason"
    # The first error names the cause; the ones after it only pass it on.
    return re.sub(r"^[\w:~ ]+: (?=\S)", "", errors[0], count=1)
