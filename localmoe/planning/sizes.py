"""Sizes for people."""

from __future__ import annotations

_UNITS = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


def format_nbytes(nbytes: int) -> str:
    """Return a size such as 2.96 GiB."""
    for unit, factor in _UNITS:
        if nbytes >= factor:
            return f"{nbytes / factor:.{0 if unit == 'KiB' else 2}f} {unit}"
    return f"{nbytes} bytes"
