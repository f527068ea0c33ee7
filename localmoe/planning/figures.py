"""What was measured of a machine and one of its drives, and the file where it is kept."""

from __future__ import annotations

import json
import math
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from localmoe.errors import SettingsError
from localmoe.planning.machine import cpu_model
from localmoe.planning.read_rates import ReadPoint, ReadRates
from localmoe.replacing import replaced_file
from localmoe.settings import available_threads
from localmoe.weights.ggml_types import GGML_TYPES

_VERSION = 1
_MAX_FILE_NBYTES = 1 << 20
_TYPES = frozenset(each.name for each in GGML_TYPES.values())


@dataclass(frozen=True)
class Kernel:
    """How weights of one ggml type are multiplied with."""

    decode_bytes_per_second: float
    """Bytes of weights that one token passes in a second."""
    prefill_operations_per_second: float
    """With many tokens at once."""


@dataclass(frozen=True)
class TokenCosts:
    """What a token takes beside the bytes of its weights.

    What was not measured is None, and part of the others.
    """

    layer_seconds: float | None = None
    """Of a layer, beside what the others say."""
    streamed_layer_seconds: float | None = None
    """More where its experts are streamed, and all of them are found."""
    streamed_expert_seconds: float | None = None
    """And for each expert that it uses."""
    missed_layer_seconds: float | None = None
    """More again where some are missing, beside waiting for them."""
    row_seconds: float | None = None
    """Of a row of a matrix, all cores together."""
    attention_bytes_per_second: float | None = None
    """Keys and values that a token goes through, each query head for itself."""


@dataclass(frozen=True, kw_only=True)
class Figures(TokenCosts):
    """A machine as it was measured. What was not measured is None or missing."""

    cpu: str
    cores: int
    memory_bytes: int
    measured_at: str
    """Day and time, ISO 8601."""
    version: str
    """Of localmoe."""
    drive: str
    """The folder whose drive was read."""
    is_direct: bool
    """Whether the file system has reads that go past the page cache."""
    memory_bytes_per_second: float | None = None
    """All cores together, reading only."""
    core_memory_bytes_per_second: float | None = None
    """One core alone."""
    reads: tuple[ReadPoint, ...] = ()
    misses: tuple[ReadPoint, ...] = ()
    """Experts by the size of a part, and how many are read at once."""
    kernels: Mapping[str, Kernel] = field(default_factory=dict)
    """By ggml type."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """By ggml type, why there is no kernel where one was tried; "layers": no layer_seconds."""
    doubtful: tuple[str, ...] = ()
    """What differed by more than half between samples, each named for a person."""

    @property
    def miss_rates(self) -> ReadRates | None:
        """How fast experts come that are missed; None: it was not measured."""
        return ReadRates(self.misses) if self.misses else None

    @property
    def read_rates(self) -> ReadRates | None:
        """How fast the drive is; None: it was not measured."""
        return ReadRates(self.reads) if self.reads else None

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all. Raises SettingsError."""
        text = json.dumps({"format": _VERSION, **asdict(self)}, indent=1) + "\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replaced_file(path) as file:
                file.write(text.encode())
        except OSError as error:
            raise SettingsError(f"cannot write {path}: {error.strerror}") from error


def figures_path(folder: Path, drive: Path) -> Path:
    """Return where this machine's figures are kept, with those of the drive that `drive` is on.

    `drive` is any file or folder there; it may be one that is still to be made. The name has host,
    processor and cores in it: several machines may share one home. Raises SettingsError.
    """
    there = drive.absolute()
    while not os.path.exists(there) and there != there.parent:  # False also where it is hidden
        there = there.parent
    try:
        device = there.stat().st_dev
    except OSError as error:
        raise SettingsError(f"cannot look at {there}: {error.strerror}") from error
    return folder / f"{_machine_name()}-drive-{device:x}.json"


def find_figures(folder: Path, drive: Path) -> Figures | None:
    """Return what was measured of this machine; None: nothing was.

    Where the drive itself was not measured but another one was, there are no reads in it. Raises
    SettingsError for a file that cannot be used.
    """
    own = read_figures(figures_path(folder, drive))
    if own is not None:
        return own
    others = [read_figures(path) for path in sorted(folder.glob(f"{_machine_name()}-drive-*.json"))]
    newest = max((f for f in others if f), key=lambda f: f.measured_at, default=None)
    return newest and replace(newest, reads=(), misses=())


def _machine_name() -> str:
    parts = (platform.node() or "unnamed", cpu_model(), f"{available_threads()} cores")
    return "-".join(re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-")[:60] for part in parts)


def read_figures(path: Path) -> Figures | None:
    """Read a file that `Figures.write` wrote; None where there is none.

    Raises SettingsError for one that cannot be used.
    """
    try:
        if path.stat().st_size > _MAX_FILE_NBYTES:
            raise ValueError(f"it has more than {_MAX_FILE_NBYTES} bytes")
        values = json.loads(path.read_bytes())
        return _checked(values)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    except (
        *(ValueError, KeyError, TypeError, AttributeError),
        *(ArithmeticError, RecursionError),
    ) as error:
        raise SettingsError(
            f"{path} does not hold figures that can be used ({error}). Measure again: "
            "localmoe bench measure"
        ) from error


def _checked(values: Any) -> Figures:
    if not isinstance(values, dict) or values.pop("format", None) != _VERSION:
        raise ValueError("it is of another version")
    kernels = {
        str(name): Kernel(
            _rate(kernel["decode_bytes_per_second"]), _rate(kernel["prefill_operations_per_second"])
        )
        for name, kernel in values["kernels"].items()
    }
    if unknown := set(kernels) - _TYPES:
        raise ValueError(f"unknown types {', '.join(sorted(unknown))}")
    rates = {
        name: None if values.get(name) is None else _rate(values[name])
        for name in (
            *("memory_bytes_per_second", "core_memory_bytes_per_second"),
            *(each.name for each in fields(TokenCosts)),
        )
    }
    return Figures(
        cpu=str(values["cpu"]),
        cores=_count(values["cores"]),
        memory_bytes=_count(values["memory_bytes"]),
        measured_at=str(values["measured_at"]),
        version=str(values["version"]),
        drive=str(values["drive"]),
        is_direct=bool(values["is_direct"]),
        reads=_points(values["reads"]),
        misses=_points(values.get("misses", ())),
        kernels=kernels,
        failed={str(name): str(reason) for name, reason in values.get("failed", {}).items()},
        doubtful=tuple(str(name) for name in values.get("doubtful", ())),
        **rates,
    )


def _points(values: Any) -> tuple[ReadPoint, ...]:
    return tuple(
        ReadPoint(_count(p["nbytes"]), _count(p["depth"]), _rate(p["bytes_per_second"]))
        for p in values
    )


def _rate(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    if not 0 < value < math.inf:
        raise ValueError(f"{value!r} is no rate")
    return float(value)


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 62:
        raise ValueError(f"{value!r} is no count")
    return value
