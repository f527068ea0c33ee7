"""Machines that a plan can be made for: some of which people buy, and those that they describe."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from localmoe.errors import SettingsError
from localmoe.planning.rates import Rates, Views
from localmoe.planning.sizes import parse_size

GIB = 1 << 30
OPERATIONS_PER_CORE = 60e9
"""With many tokens at once, where nothing was measured."""
_ATTENTION_PER_CORE = 12e9
"""Keys and values that a core goes through in a second, each query head for itself, where nothing
was measured: with eight query heads for each key 5 to 26 GB were found, the more the longer."""
_STREAMED_LAYER_SECONDS, _STREAMED_EXPERT_SECONDS = 11e-6, 1.2e-6
"""What a layer takes more where its experts are streamed, and each that it uses: as measured."""
_MISSED_LAYER_SECONDS = 70e-6
"""And more where some are missing."""
_SYSTEM_SHARE, _SYSTEM_BYTES = 0.06, 2 * GIB
"""What a desktop and its programs keep of the memory: the larger of both."""
Shares = tuple[float, float, float]
"""Slow, expected, fast."""
_CPU, _GPU = (0.4, 0.55, 0.7), (0.55, 0.7, 0.85)
"""Shares of a memory's bandwidth that weights pass processors with: slow, expected, fast."""
_DRIVE = (0.6, 0.8, 1.0)
_OPERATIONS = (0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Graphics:
    """What a GPU would add: GGUF files are computed by the processor."""

    memory_bytes: int
    """Its own memory; 0 where it shares the processor's."""
    memory_bytes_per_second: float
    operations_per_second: float


@dataclass(frozen=True)
class Machine:
    """A machine as its data sheet has it; figures of the class, measured on none."""

    name: str
    title: str
    memory_bytes: int
    memory_bytes_per_second: float
    read_bytes_per_second: float
    operations_per_second: float
    """What its cores reach together, multiplying quantized weights with many tokens."""
    graphics: Graphics | None = None

    @property
    def usable_bytes(self) -> int:
        """What is left for a model beside the system."""
        return self.memory_bytes - max(_SYSTEM_BYTES, int(self.memory_bytes * _SYSTEM_SHARE))

    @property
    def cores(self) -> float:
        """How many cores of the kind that was measured here reach together what its cores do."""
        return self.operations_per_second / OPERATIONS_PER_CORE

    def views(self) -> Views:
        """Return it computing on the CPU."""
        views = self._views(_CPU, self.memory_bytes_per_second, self.operations_per_second, 30e-6)
        slow, expected, fast = (
            replace(
                rates,
                kv_bytes_per_second=self.cores * _ATTENTION_PER_CORE * share,
                streamed_layer_seconds=_STREAMED_LAYER_SECONDS,
                streamed_expert_seconds=_STREAMED_EXPERT_SECONDS,
                missed_layer_seconds=_MISSED_LAYER_SECONDS,
            )
            for rates, share in zip(views, _OPERATIONS, strict=True)
        )
        return slow, expected, fast

    def graphics_views(self) -> Views | None:
        """Return it with weights in a GPU's reach computed there; None without a GPU."""
        gpu = self.graphics
        if not gpu:
            return None
        return self._views(_GPU, gpu.memory_bytes_per_second, gpu.operations_per_second, 20e-6)

    def _views(
        self, shares: Shares, memory: float, operations: float, layer_seconds: float
    ) -> Views:
        slow, expected, fast = (
            Rates(
                read_bytes_per_second=self.read_bytes_per_second * drive,
                memory_bytes_per_second=memory * share,
                operations_per_second=operations * part,
                layer_seconds=layer_seconds,
            )
            for share, drive, part in zip(shares, _DRIVE, _OPERATIONS, strict=True)
        )
        return slow, expected, fast


_TABLE = (
    ("dgx-spark", "NVIDIA DGX Spark, 128 GB", 128, 273e9, 6e9, 1.5e12),
    ("mac-studio-m3-ultra-512", "Mac Studio M3 Ultra, 512 GB", 512, 819e9, 6.5e9, 3e12),
    ("mac-m4-max-128", "Mac with an M4 Max, 128 GB", 128, 546e9, 6.5e9, 2e12),
    ("strix-halo-128", "Strix Halo (Ryzen AI Max+ 395), 128 GB", 128, 256e9, 6.5e9, 2e12),
    ("rtx-4090-64", "PC with an RTX 4090 and 64 GB", 64, 83e9, 6.5e9, 1.5e12),
    ("rtx-5090-96", "PC with an RTX 5090 and 96 GB", 96, 90e9, 12e9, 1.8e12),
)
"""Name, title, GiB of memory, then per second: bytes of memory, bytes of the drive, operations."""
_GRAPHICS = {
    "dgx-spark": Graphics(0, 273e9, 25e12),
    "mac-studio-m3-ultra-512": Graphics(0, 819e9, 22e12),
    "mac-m4-max-128": Graphics(0, 546e9, 14e12),
    "strix-halo-128": Graphics(0, 256e9, 15e12),
    "rtx-4090-64": Graphics(24 * GIB, 1008e9, 80e12),
    "rtx-5090-96": Graphics(32 * GIB, 1792e9, 120e12),
}
MACHINES = {
    name: Machine(name, title, gib * GIB, memory, drive, operations, _GRAPHICS.get(name))
    for name, title, gib, memory, drive, operations in _TABLE
}
"""By the name that is typed."""

_SIZES = ("memory", "memory_per_second", "read_per_second")
_EXAMPLE = 'title, memory = "64GiB", memory_per_second = "80GB", read_per_second = "6GB"'
_DEFAULT_OPERATIONS_PER_BYTE = 10.0
"""Of a described machine whose operations are not given: about what desktops reach."""


def machine_named(name: str, described: Mapping[str, Machine]) -> Machine:
    """Return a machine of the table or of those that were described. Raises SettingsError."""
    every = {**MACHINES, **described}
    if name not in every:
        near = get_close_matches(name, every, n=2, cutoff=0.4)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        raise SettingsError(
            f"there is no machine {name!r}. {hint}Known: this, {', '.join(every)}; others can be "
            "described in a file (localmoe plan --help)"
        )
    return every[name]


def read_machines(path: Path) -> dict[str, Machine]:
    """Read machines that a person described in TOML, one table each. Raises SettingsError."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from error
    return {name: _described(path, name, table) for name, table in tables.items()}


def _described(path: Path, name: str, table: object) -> Machine:
    where = f"{path}: machine {name}"
    if not isinstance(table, dict):
        raise SettingsError(f"{where} should be a table ([{name}]) with {_EXAMPLE}")
    known = {*_SIZES, "title", "operations_per_second"}
    if unknown := sorted(set(table) - known):
        raise SettingsError(
            f"{where} has {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )
    memory, memory_rate, read_rate = (_size(where, table, key) for key in _SIZES)
    operations = table.get("operations_per_second", memory_rate * _DEFAULT_OPERATIONS_PER_BYTE)
    if not isinstance(operations, int | float) or not 0 < operations < math.inf:
        raise SettingsError(f"{where}: operations_per_second should be a number above 0")
    title = table.get("title", name)
    if not isinstance(title, str):
        raise SettingsError(f"{where}: title should be text")
    return Machine(name, title, memory, float(memory_rate), float(read_rate), float(operations))


def _size(where: str, table: Mapping[str, Any], key: str) -> int:
    value = table.get(key)
    if not isinstance(value, str):
        raise SettingsError(f"{where}: {key} should be a size in quotes, as in {_EXAMPLE}")
    try:
        return parse_size(value)
    except SettingsError as error:
        raise SettingsError(f"{where}: {key}: {error}") from error
