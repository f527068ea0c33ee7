"""All checks, in the order of the page."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from localmoe.backends.opening import engine_name
from localmoe.doctor import drive, engines, folders, graphics, memory, model, processor
from localmoe.doctor.check import Check
from localmoe.doctor.child import Ask
from localmoe.doctor.folders import Measured
from localmoe.doctor.system import System


@dataclass(frozen=True)
class Visit:
    """What the doctor was asked, and what only the command line knows."""

    model: Path | None
    """None: the demonstration model."""
    memory_bytes: int | None
    cache: Path
    state: Path
    measured: Measured
    encoding: str
    is_terminal: bool
    now: datetime.datetime

    @property
    def place(self) -> Path:
        """The model, or the folder that models are in."""
        return self.model or self.cache


def examine(system: System, visit: Visit, ask: Ask) -> list[Check]:
    """Make all checks. `ask` asks the engine in a child."""
    engine = ask(("engine",))
    loads = "died" not in engine and "error" not in engine
    return [
        engines.check_python(system),
        processor.check_processor(system),
        processor.check_cores(system),
        memory.check_memory(system, visit.memory_bytes),
        memory.check_swap(system),
        memory.check_locked_memory(system),
        memory.check_huge_pages(system),
        drive.check_drive(system, visit.place),
        drive.check_direct(system, visit.place),
        drive.check_ring(system),
        graphics.check_graphics(system),
        engines.check_version(system),
        engines.check_build(system, engine),
        engines.check_callback(system, engine),
        engines.check_torch(system, is_needed=_is_checkpoint(visit)),
        engines.check_mlx(system),
        folders.check_folder("cache folder", visit.cache, "LOCALMOE_CACHE"),
        folders.check_folder("state folder", visit.state, "LOCALMOE_STATE"),
        folders.check_figures(visit.measured, visit.now),
        folders.check_terminal(system, visit.encoding, is_terminal=visit.is_terminal),
        *([_model(system, visit, ask)] if loads or _is_checkpoint(visit) else []),
    ]


def _is_checkpoint(visit: Visit) -> bool:
    return engine_name(visit.model) == "torch"


def _model(system: System, visit: Visit, ask: Ask) -> Check:
    if visit.model:
        return model.check_model(visit.model, visit.memory_bytes, ask)
    return model.check_demo(system, visit.cache, visit.memory_bytes, ask)
