"""What a GPU would change for GGUF files, which the processor computes: what it would be worth."""

from __future__ import annotations

from dataclasses import replace

from localmoe.planning.machines import Machine
from localmoe.planning.outlook import Situation
from localmoe.planning.rates import Rates

_USABLE_SHARE = 0.9
"""Of a GPU's own memory, what is left for weights."""


def with_graphics(situation: Situation, machine: Machine) -> Situation | None:
    """Return a situation with the GPU computing all that it can hold; None without a GPU.

    What every token uses comes first, experts fill the rest. Experts in the processor's memory stay
    there and are multiplied by it. A GPU that shares the processor's memory computes everything.
    """
    views = machine.graphics_views()
    if not machine.graphics or not views:
        return None
    own = machine.graphics.memory_bytes
    if not own:
        return replace(situation, views=views)
    plan = situation.plan
    room = int(own * _USABLE_SHARE)
    held = min(situation.catalog.expert_nbytes, plan.slot_bytes + room)
    experts_there = max(0, room - plan.resident_bytes - plan.kv_bytes)
    share = min(1.0, experts_there / held) if held else 0.0
    slow, expected, fast = (
        _mixed(situation, near, far, share)
        for near, far in zip(situation.views, views, strict=True)
    )
    return replace(situation, views=(slow, expected, fast)).with_slot_bytes(held)


def _mixed(situation: Situation, near: Rates, far: Rates, share: float) -> Rates:
    """Return rates where the GPU has what every token uses, and this share of the experts."""
    work = situation.work
    resident = work.resident_nbytes / far.memory_bytes_per_second
    routed = work.routed_nbytes * (
        share / far.memory_bytes_per_second + (1 - share) / near.memory_bytes_per_second
    )
    whole = (work.resident_nbytes + work.routed_nbytes) / (resident + routed)
    return replace(far, memory_bytes_per_second=whole)
