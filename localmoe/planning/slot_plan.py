"""Plans for engines that keep all experts in slots, also where all of them fit."""

from __future__ import annotations

from dataclasses import replace

from localmoe.planning.budget import SlotPlan, plan_fixed_slots, plan_memory, plan_shared
from localmoe.planning.request import Request


def plan_slots(request: Request, budget_bytes: int, slots: int | None) -> SlotPlan:
    """Split the budget; `slots` fixes how many there are. Raises BudgetError, SettingsError."""
    if slots:
        return plan_fixed_slots(request, budget_bytes, slots)
    found = plan_memory(request, budget_bytes)
    if found.counts:
        return found
    length = found.plan.prefill_chunk_tokens
    chosen = [each for each in request.footprints if each.chunk_tokens == length]
    alone = replace(request, footprints=chosen)
    return plan_shared(alone, budget_bytes, [c.token_demand for c in request.classes])
