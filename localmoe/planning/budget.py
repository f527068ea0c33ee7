"""Splits a memory budget into resident weights, KV cache, compute buffers and expert slots."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from localmoe.cache.memory import HUGE_PAGE_NBYTES, round_up
from localmoe.cache.slots import share_slots, slots_nbytes
from localmoe.errors import BudgetError, SettingsError
from localmoe.planning.dense import LARGE_KV_BYTES, dense_too_small
from localmoe.planning.loans import Loan, tiers
from localmoe.planning.plan import MemoryPlan
from localmoe.planning.request import ChunkFootprint, Request
from localmoe.planning.sizes import format_nbytes
from localmoe.planning.work import work_bytes

MARGIN_BYTES = 96 << 20
"""For what cannot be planned: thread stacks, Python objects, page tables, library pages.

While a state is saved or restored llama.cpp copies the keys of one layer: they come out of it, too.
"""
_MARGIN_FRACTION = 0.01
_CHUNK_SHARE = 4
"""A prefill chunk's buffers may take up to a quarter of what is left for slots."""
_LOAN_SHARE = 2
"""A prefill chunk may borrow up to half of the slots."""
_RESIDENT_CHUNK_TOKENS = 32
"""Shorter chunks slow prefill more than a few missing experts do."""
_PAGE_NBYTES = 4096


@dataclass(frozen=True)
class SlotPlan:
    """A memory plan, how its slots are divided over the size classes, and when they are fewer.

    `loans` go up in tokens; the first has all slots, the last is for the longest chunk.
    """

    plan: MemoryPlan
    counts: tuple[int, ...]
    loans: tuple[Loan, ...] = ()


@dataclass(frozen=True)
class _Buffers:
    """A footprint of which a part is lent."""

    chunk_tokens: int
    kv_bytes: int
    compute_bytes: int


def base_with_margin(base_bytes: int, budget_bytes: int) -> int:
    """Return the interpreter's share with the margin for what cannot be planned."""
    return base_bytes + MARGIN_BYTES + int(budget_bytes * _MARGIN_FRACTION)


def plan_memory(request: Request, budget_bytes: int) -> SlotPlan:
    """Split the budget; the longest prefill chunk whose buffers leave the slots their room.

    Where everything fits, everything is resident. Raises BudgetError, naming the smallest budget
    that works, when the slots would hold fewer experts than one token routes to: an LRU cache
    then never hits.
    """
    found = [_plan(request, footprint, budget_bytes) for footprint in request.footprints]
    plans = [slot_plan for slot_plan in found if slot_plan]
    if not plans:
        raise _too_small(request, budget_bytes)
    if not request.catalog.layers:
        return plans[0]
    enough = min(_RESIDENT_CHUNK_TOKENS, request.footprints[0].chunk_tokens)
    return next((p for p in plans if _is_resident(p, enough)), None) or next(
        slot_plan for slot_plan in plans if _leaves_room(slot_plan.plan, plans[-1].plan)
    )


def plan_fixed_slots(request: Request, budget_bytes: int, slots: int) -> SlotPlan:
    """Plan with a given number of slots, whatever the budget: for tests and experiments.

    Raises BudgetError when that is too few for one layer of each size of experts, SettingsError
    for a dense model.
    """
    if not request.classes:
        raise SettingsError("slots hold experts, and this model is dense: leave --slots out")
    least = [max(layer.n_experts_used for layer in c.layers) for c in request.classes]
    counts = share_slots(request.classes, least, lambda counts: sum(counts) <= slots)
    if counts is None:
        raise BudgetError(
            f"{slots} slots are fewer than the experts that one layer routes a token to; "
            f"use at least {sum(least)}."
        )
    return _assemble(request, request.footprints[0], budget_bytes, counts)


def plan_shared(request: Request, budget_bytes: int, least: Sequence[int]) -> SlotPlan:
    """Give slots all that the longest chunk's buffers leave, also where all experts fit.

    `least` is how many of each class there have to be. Raises BudgetError, naming the smallest
    budget that works.
    """
    footprint = request.footprints[0]
    rest = _assemble(request, footprint, budget_bytes, least).plan
    fixed = rest.total_bytes - rest.slot_bytes
    counts = share_slots(
        request.classes,
        least,
        lambda counts: fixed + slots_nbytes(request.classes, counts) <= budget_bytes,
    )
    if counts is None:
        wanted = fixed + slots_nbytes(request.classes, least)
        mib = round_up(int(wanted * (1 + _MARGIN_FRACTION)), 1 << 20) >> 20
        raise BudgetError(
            f"{format_nbytes(budget_bytes)} are too small for slots of {sum(least)} experts beside "
            f"what else is needed: use {request.option} {mib}MiB or more."
        )
    return _assemble(request, footprint, budget_bytes, counts)


def _is_resident(slot_plan: SlotPlan, least_chunk_tokens: int) -> bool:
    """Whether all experts are in memory, and not at the price of a very slow prefill."""
    chunk_tokens = slot_plan.plan.prefill_chunk_tokens
    return not slot_plan.counts and chunk_tokens >= least_chunk_tokens


def _leaves_room(plan: MemoryPlan, shortest: MemoryPlan) -> bool:
    """Whether a chunk's buffers cost little beside the slots, compared with the shortest chunk."""
    extra = (plan.kv_bytes + plan.compute_bytes) - (shortest.kv_bytes + shortest.compute_bytes)
    return (
        extra <= plan.slot_bytes // _CHUNK_SHARE
        and plan.lent_bytes <= plan.slot_bytes // _LOAN_SHARE
    )


def _plan(request: Request, footprint: ChunkFootprint, budget_bytes: int) -> SlotPlan | None:
    """Return the plan for this chunk length, or None where its slots would be too few."""
    resident = _assemble(request, footprint, budget_bytes, ())
    if resident.plan.total_bytes <= budget_bytes:
        return resident
    if not request.classes:
        return None
    steps = tiers(request.footprints, footprint) if request.lends else []
    if len(steps) < 2:
        counts = _share(request, footprint, budget_bytes)
        return _assemble(request, footprint, budget_bytes, counts) if counts else None
    # Memory comes back in whole huge pages: at both ends of what is lent some may stay behind.
    edges = 2 * HUGE_PAGE_NBYTES * (1 + len(request.classes))
    loans: list[Loan] = []
    buffers = [
        _Buffers(footprint.chunk_tokens, footprint.kv_bytes, step.compute_bytes + edges)
        for step in steps
    ]
    for step, during in zip(steps, buffers, strict=True):
        counts = _share(request, during, budget_bytes)
        if counts is None:
            return None
        loans.append(Loan(step.tokens, tuple(counts)))
    return _assemble(request, buffers[0], budget_bytes, loans[0].counts, tuple(loans))


def _share(request: Request, footprint: ChunkFootprint, budget_bytes: int) -> list[int] | None:
    """Return how many slots of each class fit beside this chunk's buffers; None: too few."""
    rest = _assemble(request, footprint, budget_bytes, ()).plan
    fixed = rest.total_bytes - rest.slot_bytes - work_bytes(request, footprint, ())

    def fits(counts: Sequence[int]) -> bool:
        work = work_bytes(request, footprint, counts)
        return fixed + slots_nbytes(request.classes, counts) + work <= budget_bytes

    return share_slots(request.classes, [c.token_demand for c in request.classes], fits)


def _assemble(
    request: Request,
    footprint: ChunkFootprint,
    budget_bytes: int,
    counts: Sequence[int],
    loans: tuple[Loan, ...] = (),
) -> SlotPlan:
    """Return the plan with so many slots of each class; no counts: all experts are resident."""
    catalog = request.catalog
    plan = MemoryPlan(
        budget_bytes=budget_bytes,
        base_bytes=base_with_margin(request.base_bytes, budget_bytes),
        resident_bytes=catalog.resident_nbytes,
        kv_bytes=footprint.kv_bytes,
        compute_bytes=footprint.compute_bytes + work_bytes(request, footprint, counts),
        slot_bytes=slots_nbytes(request.classes, counts) if counts else catalog.expert_nbytes,
        slots=sum(counts) if counts else catalog.n_experts_total,
        experts=catalog.n_experts_total,
        context_tokens=request.context_tokens,
        prefill_chunk_tokens=footprint.chunk_tokens,
        kv_type=request.kv_type,
        mark_bytes=request.mark_bytes,
        lent_bytes=_lent_bytes(request, loans),
    )
    return SlotPlan(plan, tuple(counts), loans)


def _lent_bytes(request: Request, loans: Sequence[Loan]) -> int:
    if not loans:
        return 0
    most, least = (slots_nbytes(request.classes, loan.counts) for loan in (loans[0], loans[-1]))
    return most - least


def smallest_budget_mib(request: Request) -> int:
    """Return the smallest budget that works, in whole MiB."""
    limit_mib = 1024
    while not _works(request, limit_mib << 20):
        limit_mib *= 2
    return bisect_left(range(limit_mib), True, key=lambda mib: _works(request, mib << 20))


def _too_small(request: Request, budget_bytes: int) -> BudgetError:
    """Name the smallest budget that works, and say what takes the room."""
    mib = smallest_budget_mib(request)
    if not request.catalog.layers:
        least_plan = _assemble(request, request.footprints[-1], mib << 20, ()).plan
        return dense_too_small(least_plan, budget_bytes, mib)
    catalog, least = request.catalog, request.footprints[-1]
    demand = slots_nbytes(request.classes, [c.token_demand for c in request.classes])
    return BudgetError(
        f"a budget of {format_nbytes(budget_bytes)} is too small for this model: resident weights "
        f"take {format_nbytes(catalog.resident_nbytes)}, the KV cache of {request.context_tokens} "
        f"tokens {format_nbytes(least.kv_bytes)}, the program itself "
        f"{format_nbytes(base_with_margin(request.base_bytes, mib << 20))}, and the "
        f"{catalog.token_demand} experts that one token routes to {format_nbytes(demand)}. "
        f"Use {request.option} {mib}MiB or more"
        + (", or a smaller --context." if least.kv_bytes > LARGE_KV_BYTES else ".")
    )


def _works(request: Request, budget_bytes: int) -> bool:
    return any(_plan(request, footprint, budget_bytes) for footprint in request.footprints)
