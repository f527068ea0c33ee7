"""Plans for engines that keep all experts in slots, also where all of them fit."""

from __future__ import annotations

from dataclasses import replace

from localmoe.cache.slots import share_slots, slots_nbytes
from localmoe.errors import BudgetError
from localmoe.planning.budget import SlotPlan, plan_fixed_slots, plan_memory
from localmoe.planning.request import Request


def plan_slots(request: Request, budget_bytes: int, slots: int | None) -> SlotPlan:
    """Split the budget; `slots` fixes how many there are. Raises BudgetError, SettingsError."""
    if slots:
        return plan_fixed_slots(request, budget_bytes, slots)
    found = plan_memory(request, budget_bytes)
    if found.counts:
        return found
    rest = found.plan.total_bytes - found.plan.slot_bytes
    counts = share_slots(
        request.classes,
        [c.token_demand for c in request.classes],
        lambda counts: rest + slots_nbytes(request.classes, counts) <= budget_bytes,
    )
    if counts is None:
        raise BudgetError("the slots of one token's experts do not fit")
    nbytes = slots_nbytes(request.classes, counts)
    plan = replace(found.plan, slots=sum(counts), slot_bytes=nbytes)
    return SlotPlan(plan, tuple(counts))
