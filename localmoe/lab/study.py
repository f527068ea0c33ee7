"""All that `bench cache` tells of a trace, as one answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from localmoe.lab.acting import measure_acting
from localmoe.lab.devices import Device
from localmoe.lab.grid import GridRequest, measure_grid
from localmoe.lab.scaling import scaled
from localmoe.lab.shapes import Shape
from localmoe.lab.sizes import parse_slots
from localmoe.lab.speed import Machine
from localmoe.prediction.score import score_history, warm_up_tokens
from localmoe.prediction.trace import Trace
from localmoe.settings import Progress

Answer = dict[str, Any]


@dataclass(frozen=True)
class StudyRequest:
    """`sizes` as people write them; a shape is what the trace is scaled to."""

    policies: tuple[str, ...]
    sizes: str
    device: Device | None = None
    shape: Shape | None = None
    token_seconds: float | None = None
    """What a token takes with all experts in memory, if it is known."""
    guesses: bool = False
    """Whether predictors are scored, and with a device replayed."""


def study(
    trace: Trace, source: str, request: StudyRequest, progress: Progress | None = None
) -> tuple[Trace, Answer]:
    """Return the trace that was replayed, and its answer. Raises SettingsError."""
    replayed = trace
    if request.shape:
        if progress:
            progress(f"scaling to {request.shape.name}", 0, 1)
        replayed = scaled(trace, request.shape)
    machine = None
    if request.device:
        machine = Machine.of(request.device, replayed, request.shape, request.token_seconds)
    slots = parse_slots(request.sizes, replayed)
    answer: Answer = {
        "source": source,
        "tokens": trace.n_tokens,
        "scored_tokens": trace.n_tokens - warm_up_tokens(trace),
        "layers": list(replayed.layers),
        "experts_per_layer": replayed.n_experts,
        "experts_used": replayed.n_experts_used,
        "expert_bytes": replayed.mean_expert_nbytes,
        "sizes": measure_grid(replayed, GridRequest(request.policies, slots, machine), progress),
    }
    if machine:
        answer["simulation"] = {
            "device": machine.device.name,
            "model": request.shape.name if request.shape else None,
            "resident_bytes": machine.resident_nbytes,
            "assumptions": machine.assumptions(trace, request.shape),
        }
    if request.guesses and not request.shape:
        answer |= _guesses(trace, answer["sizes"], machine, progress)
    return replayed, answer


def _guesses(
    trace: Trace, sizes: list[Answer], machine: Machine | None, progress: Progress | None
) -> Answer:
    """Score predictors; with a machine, replay acting on them, at the size in the middle."""
    if progress:
        progress("scoring guesses", 0, 1)
    guessed, scores = score_history(trace)
    if not machine:
        return {"predictors": scores}
    slots = sizes[len(sizes) // 2]["slots"]
    return {"predictors": scores, "acting": acting_answer(guessed, machine, slots)}


def acting_answer(guessed: Trace, machine: Machine, slots: int) -> Answer:
    """Return what reading ahead on a trace's guesses would do, and on what assumptions."""
    return {
        "device": machine.device.name,
        "slots": slots,
        "predictors": measure_acting(guessed, machine, slots),
        "assumptions": machine.assumptions(guessed, None),
    }
