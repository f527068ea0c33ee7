"""What would make a model faster on a machine, the largest gain first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from localmoe.planning.outlook import Situation
from localmoe.planning.sizes import format_nbytes
from localmoe.planning.token_work import TokenWork

_LEAST_GAIN = 1.05
_SECOND_DRIVE = 1.9
"""Two drives read nearly twice as fast as one: measured +37 % to twice."""


@dataclass(frozen=True)
class Advice:
    """A change, and the expected speed with it."""

    change: str
    tokens_per_second: float
    gain: float
    """Times the speed without it."""


@dataclass(frozen=True)
class Smaller:
    """The same model in a smaller quantization. Bytes."""

    name: str
    resident_bytes: int
    routed_bytes: int


def advise(situation: Situation, smaller: tuple[Smaller, ...]) -> list[Advice]:
    """Return what helps, the largest gain first."""
    now = situation.decode().expected
    found = []
    for change, changed in (*_hardware(situation), *_smaller(situation, smaller)):
        speed = changed.decode().expected
        if speed >= now * _LEAST_GAIN:
            found.append(Advice(change, speed, speed / now))
    return sorted(found, key=lambda advice: -advice.gain)


def _hardware(situation: Situation) -> Iterator[tuple[str, Situation]]:
    plan, catalog = situation.plan, situation.catalog
    if not plan.streams:
        return
    missing = catalog.expert_nbytes - plan.slot_bytes
    whole = format_nbytes(plan.budget_bytes + missing)
    yield f"memory for all experts: {whole}", situation.with_slot_bytes(catalog.expert_nbytes)
    if missing > plan.budget_bytes:
        doubled = format_nbytes(2 * plan.budget_bytes)
        grown = situation.with_slot_bytes(plan.slot_bytes + plan.budget_bytes)
        yield f"twice the memory: {doubled}", grown
    if situation.engine != "llama":  # the others have no such options
        return
    yield "a copy on a second drive (--mirror)", situation.with_drives(_SECOND_DRIVE)
    if plan.kv_type == "f16":
        halved = situation.with_slot_bytes(plan.slot_bytes + plan.kv_bytes * 0.47)
        yield "--kv-type q8_0 (lossy)", halved


def _smaller(situation: Situation, smaller: tuple[Smaller, ...]) -> Iterator[tuple[str, Situation]]:
    """Yield the model in less bytes: what it takes, and what its slots hold then."""
    for option in smaller:
        resident = option.resident_bytes / situation.catalog.resident_nbytes
        routed = option.routed_bytes / situation.catalog.expert_nbytes
        saved = situation.plan.resident_bytes - option.resident_bytes
        # Memory holds as many more experts as they are shorter.
        slot_bytes = (situation.plan.slot_bytes + saved) / routed
        work = _scaled(situation.work, resident, routed)
        yield f"{option.name} instead", replace(situation, work=work).with_slot_bytes(slot_bytes)


def _scaled(work: TokenWork, resident: float, routed: float) -> TokenWork:
    return replace(
        work,
        resident={kind: int(nbytes * resident) for kind, nbytes in work.resident.items()},
        routed={kind: int(nbytes * routed) for kind, nbytes in work.routed.items()},
    )
