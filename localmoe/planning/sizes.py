"""Sizes as people write and read them."""

from __future__ import annotations

import re

from localmoe.errors import SettingsError

_SHOWN_UNITS = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))

_UNITS = {
    **{"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40},
    **{"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40},
    **{"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12},
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([a-z]*)", re.ASCII)
_MAX_NBYTES = 1 << 60


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 3GiB, 3072MB or 1.5G. Raises SettingsError.

    K, M, G and T count in 1024s, as KiB, MiB, GiB and TiB do; KB, MB, GB and TB count in 1000s.
    """
    match = _SIZE.fullmatch(text.strip().lower())
    unit = match.group(2) if match else None
    if not match or unit is None or (unit and unit not in _UNITS):
        raise SettingsError(f"{text!r} is not a size. Write it like 3GiB, 3072MB or 500M")
    if not unit:
        raise SettingsError(f"{text!r} has no unit. Write it like {text.strip()}GiB or 3072MB")
    nbytes = float(match.group(1)) * _UNITS[unit]
    if not 1 <= nbytes <= _MAX_NBYTES:
        raise SettingsError(f"{text!r} is no usable size: it must lie between 1 byte and 1 EiB")
    return int(nbytes)


def format_nbytes(nbytes: int) -> str:
    """Return a size such as 2.96 GiB."""
    for unit, factor in _SHOWN_UNITS:
        if nbytes >= factor:
            return f"{nbytes / factor:.{0 if unit == 'KiB' else 2}f} {unit}"
    return f"{nbytes} bytes"
