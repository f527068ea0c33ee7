"""The options that commands share, and the places that the environment names."""

from __future__ import annotations

import os
import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from localmoe.errors import SettingsError


class KvTypeName(StrEnum):
    """What `settings.KvType` names."""

    F16 = "f16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"


class PolicyKind(StrEnum):
    """What `settings.PolicyName` names."""

    NEXT_USE = "next-use"
    LRU = "lru"
    LFU = "lfu"
    LRFU = "lrfu"
    SLRU = "slru"
    TWO_QUEUE = "two-queue"
    LEAST_STALE = "least-stale"
    STATIC = "static"


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


def cache_dir() -> Path:
    """Return the folder for files that can be made again: $LOCALMOE_CACHE, or the system's."""
    own = os.environ.get("LOCALMOE_CACHE")
    if own:
        return Path(own).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME")
    if xdg and Path(xdg).is_absolute():
        return Path(xdg) / "localmoe"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "localmoe"
    return Path.home() / ".cache" / "localmoe"


def profile_dir() -> Path:
    """Return the folder for what is remembered of runs: $LOCALMOE_STATE, or the system's."""
    own = os.environ.get("LOCALMOE_STATE")
    if own:
        return Path(own).expanduser() / "profiles"
    xdg = os.environ.get("XDG_STATE_HOME")
    if xdg and Path(xdg).is_absolute():
        return Path(xdg) / "localmoe" / "profiles"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "localmoe" / "profiles"
    return Path.home() / ".local" / "state" / "localmoe" / "profiles"


def size_option(text: str) -> int:
    """Return the bytes of a size on the command line. Raises typer.BadParameter."""
    try:
        return parse_size(text)
    except SettingsError as error:
        raise typer.BadParameter(str(error)) from error


Memory = Annotated[
    int | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        parser=size_option,
        envvar="LOCALMOE_MEMORY",
        help="Memory for everything together, such as 3GiB or 3072MB. "
        "Default: what is available, less a margin.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        min=1,
        max=512,
        envvar="LOCALMOE_THREADS",
        help="Threads that compute. Default: all cores that this process may use.",
    ),
]
Context = Annotated[
    int,
    typer.Option(
        "--context",
        metavar="N",
        min=16,
        max=1 << 24,
        help="Tokens of the conversation that fit at once.",
    ),
]
KvTypes = Annotated[
    KvTypeName,
    typer.Option(
        "--kv-type",
        help="How the conversation is kept in memory. q8_0 takes about half of f16's room, q4_0 a "
        "quarter; both are lossy: the model says slightly other things.",
    ),
]
Policies = Annotated[
    PolicyKind,
    typer.Option(
        "--policy",
        help="Which expert gives way to another one: the one that is expected to be used last, as "
        "learned in this run (next-use), the one that was used longest ago (lru), or one of those "
        "that docs/cache-lab.md describes. The answer is the same.",
    ),
]
Mirrors = Annotated[
    list[str] | None,
    typer.Option(
        "--mirror",
        metavar="PATH",
        help="A copy of MODEL on another drive (a file, or a folder with all shards): experts are "
        "read from both at once. May be given several times.",
    ),
]
ExpertsUsed = Annotated[
    int | None,
    typer.Option(
        "--experts-used",
        metavar="N",
        min=1,
        help="Experts per token, instead of the model's own number. Lossy: the model says other "
        "things than it was trained to; for experiments only.",
    ),
]
