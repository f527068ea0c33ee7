"""The machine that this runs on: its memory is probed, its speeds are those that were measured."""

from __future__ import annotations

from dataclasses import dataclass

from localmoe.planning.machine import available_memory_bytes
from localmoe.planning.machines import Machine
from localmoe.planning.rates import Views
from localmoe.settings import available_threads

_GUESSED_READ, _GUESSED_MEMORY_PER_CORE, _GUESSED_MEMORY = 3e9, 8e9, 60e9
_GUESSED_OPERATIONS_PER_CORE = 60e9


@dataclass(frozen=True)
class ThisMachine:
    """What a plan needs to know of it."""

    title: str
    source: str
    usable_bytes: int
    described: Machine

    @classmethod
    def probe(cls) -> ThisMachine:
        """Look at memory and cores."""
        cores = available_threads()
        usable = available_memory_bytes()
        memory = min(_GUESSED_MEMORY, cores * _GUESSED_MEMORY_PER_CORE)
        title = f"this machine, {cores} cores"
        described = Machine(
            "this",
            title,
            usable,
            memory,
            _GUESSED_READ,
            cores * _GUESSED_OPERATIONS_PER_CORE,
        )
        source = "guessed from its cores; localmoe bench measure finds its own in two minutes"
        return cls(title, source, usable, described)

    def views(self) -> Views:
        """Return the slow, the expected and the fast view of it."""
        return self.described.views()
