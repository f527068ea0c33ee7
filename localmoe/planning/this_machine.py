"""The machine that this runs on: its memory is probed, its speeds are those that were measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from localmoe.planning.figures import Figures, find_figures
from localmoe.planning.machine import available_memory_bytes
from localmoe.planning.machines import OPERATIONS_PER_CORE, Machine
from localmoe.planning.rates import Rates, Views
from localmoe.settings import available_threads

_GUESSED_READ, _GUESSED_MEMORY_PER_CORE, _GUESSED_MEMORY = 3e9, 8e9, 60e9
PART_NBYTES = 1 << 20
"""About what a part of an expert takes: reads are of this size."""
_SPREAD = (0.85, 1.0, 1.15)
"""What a machine varies by from one hour to the next: slow, expected, fast."""


@dataclass(frozen=True)
class ThisMachine:
    """What a plan needs to know of it."""

    usable_bytes: int
    cores: int
    figures: Figures | None

    @classmethod
    def probe(cls, figures_dir: Path, model: Path) -> ThisMachine:
        """Look at memory and cores, and for what was measured of the drive of a model.

        Raises SettingsError for a file of figures that cannot be used.
        """
        figures = find_figures(figures_dir, model)
        return cls(available_memory_bytes(), available_threads(), figures)

    @property
    def title(self) -> str:
        """Name it."""
        return f"this machine, {self.cores} cores"

    @property
    def source(self) -> str:
        """Say where its speeds come from."""
        if self.figures:
            drive = "" if self.figures.reads else ", but for this drive, which is guessed"
            doubt = "; some of it doubtful, measure again" if self.figures.doubtful else ""
            day = self.figures.measured_at[:10]
            return f"measured on {day} by localmoe bench measure{drive}{doubt}"
        return "guessed from its cores; localmoe bench measure finds its own in two minutes"

    def views(self) -> Views:
        """Return the slow, the expected and the fast view of it."""
        if self.figures is None:
            return self._guessed().views()
        expected = _rates(self.figures, self._guessed().views()[1])
        slow, same, fast = (_scaled(expected, factor) for factor in _SPREAD)
        return slow, same, fast

    def _guessed(self) -> Machine:
        memory = min(_GUESSED_MEMORY, self.cores * _GUESSED_MEMORY_PER_CORE)
        operations = self.cores * OPERATIONS_PER_CORE
        return Machine("this", self.title, self.usable_bytes, memory, _GUESSED_READ, operations)


def _rates(figures: Figures, guessed: Rates) -> Rates:
    """Take what was measured; for types that were not, the slowest of those that were."""
    decode = {name: kernel.decode_bytes_per_second for name, kernel in figures.kernels.items()}
    prefill = {
        name: kernel.prefill_operations_per_second for name, kernel in figures.kernels.items()
    }
    reads, misses = figures.read_rates, figures.miss_rates
    memory = figures.memory_bytes_per_second or guessed.memory_bytes_per_second
    return Rates(
        read_bytes_per_second=reads.rate(PART_NBYTES) if reads else guessed.read_bytes_per_second,
        reads=misses,
        memory_bytes_per_second=min([memory, *decode.values()]),
        kv_bytes_per_second=figures.attention_bytes_per_second or guessed.kv_bytes_per_second,
        operations_per_second=min(prefill.values(), default=guessed.operations_per_second),
        layer_seconds=figures.layer_seconds or 0.0,
        streamed_layer_seconds=figures.streamed_layer_seconds or 0.0,
        streamed_expert_seconds=figures.streamed_expert_seconds or 0.0,
        missed_layer_seconds=figures.missed_layer_seconds or 0.0,
        row_seconds=figures.row_seconds or 0.0,
        decode=decode,
        prefill=prefill,
    )


def _scaled(rates: Rates, factor: float) -> Rates:
    return replace(
        rates.with_drive(factor),
        memory_bytes_per_second=rates.memory_bytes_per_second * factor,
        kv_bytes_per_second=rates.kv_bytes_per_second and rates.kv_bytes_per_second * factor,
        operations_per_second=rates.operations_per_second * factor,
        layer_seconds=rates.layer_seconds / factor,
        streamed_layer_seconds=rates.streamed_layer_seconds / factor,
        streamed_expert_seconds=rates.streamed_expert_seconds / factor,
        missed_layer_seconds=rates.missed_layer_seconds / factor,
        row_seconds=rates.row_seconds / factor,
        decode={name: rate * factor for name, rate in rates.decode.items()},
        prefill={name: rate * factor for name, rate in rates.prefill.items()},
    )
