"""Splits a memory budget into resident weights, KV cache, compute buffers and expert slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from localmoe.cache.slots import SlotClass, divide_slots
from localmoe.errors import BudgetError
from localmoe.planning.plan import MemoryPlan
from localmoe.planning.sizes import format_nbytes, format_nbytes_up
from localmoe.weights.catalog import Catalog

MARGIN_BYTES = 96 << 20
"""For what cannot be planned: thread stacks, Python objects, page tables, library pages."""
_MARGIN_FRACTION = 0.01
_CHUNK_SHARE = 4
"""A prefill chunk's buffers may take up to a quarter of what is left for slots."""
_ROW_MAPPING_NBYTES = 8  # per slot, expert of a token and token: llama.cpp groups rows by expert


class ChunkFootprint(Protocol):
    """What an engine needs for one prefill chunk length."""

    @property
    def chunk_tokens(self) -> int: ...  # noqa: D102
    @property
    def kv_bytes(self) -> int: ...  # noqa: D102
    @property
    def compute_bytes(self) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class Request:
    """What a plan is made for. Bytes."""

    catalog: Catalog
    classes: tuple[SlotClass, ...]
    footprints: Sequence[ChunkFootprint]
    """Longest chunk first."""
    base_bytes: int
    context_tokens: int


@dataclass(frozen=True)
class SlotPlan:
    """A memory plan and how its slots are divided over the size classes."""

    plan: MemoryPlan
    counts: tuple[int, ...]


def base_with_margin(base_bytes: int, budget_bytes: int) -> int:
    """Return the interpreter's share with the margin for what cannot be planned."""
    return base_bytes + MARGIN_BYTES + int(budget_bytes * _MARGIN_FRACTION)


def plan_memory(request: Request, budget_bytes: int) -> SlotPlan:
    """Split the budget; the longest prefill chunk whose buffers leave the slots their room.

    Raises BudgetError, naming the smallest budget that works, when the slots would hold fewer
    experts than one token routes to: an LRU cache then never hits.
    """
    everything = _plan_resident(request, budget_bytes)
    if everything:
        return everything
    feasible = [
        plan
        for footprint in request.footprints
        if (plan := _plan_streaming(request, footprint, budget_bytes))
    ]
    if not feasible:
        raise _too_small(request, budget_bytes)
    for slot_plan in feasible:
        extra = slot_plan.plan.compute_bytes - feasible[-1].plan.compute_bytes
        if extra <= slot_plan.plan.slot_bytes // _CHUNK_SHARE:
            return slot_plan
    return feasible[-1]


def plan_fixed_slots(request: Request, budget_bytes: int, slots: int) -> SlotPlan:
    """Plan with a given number of slots, whatever the budget: for tests and experiments."""
    n_experts = request.catalog.n_experts_total
    counts = tuple(
        min(c.n_experts, max(1, slots * c.n_experts // n_experts)) for c in request.classes
    )
    for footprint in request.footprints:
        if _widest_chunk(request, counts) >= footprint.chunk_tokens:
            return _assemble(request, footprint, budget_bytes, counts)
    raise BudgetError(
        f"{slots} slots are fewer than the experts that one layer routes a token to; "
        f"use at least {request.catalog.token_demand}."
    )


def _plan_resident(request: Request, budget_bytes: int) -> SlotPlan | None:
    """Return a plan with every expert in memory, if the budget holds that."""
    footprint = request.footprints[0]
    experts = request.catalog.n_experts_total
    plan = MemoryPlan(
        budget_bytes=budget_bytes,
        base_bytes=base_with_margin(request.base_bytes, budget_bytes),
        resident_bytes=request.catalog.resident_nbytes,
        kv_bytes=footprint.kv_bytes,
        compute_bytes=footprint.compute_bytes + _work_bytes(request, footprint, 0),
        slot_bytes=request.catalog.expert_nbytes,
        slots=experts,
        experts=experts,
        context_tokens=request.context_tokens,
        prefill_chunk_tokens=footprint.chunk_tokens,
    )
    return SlotPlan(plan, ()) if plan.total_bytes <= budget_bytes else None


def _plan_streaming(
    request: Request, footprint: ChunkFootprint, budget_bytes: int
) -> SlotPlan | None:
    """Return a plan for this chunk length, or None where its slots would be too few."""
    fixed = (
        base_with_margin(request.base_bytes, budget_bytes)
        + request.catalog.resident_nbytes
        + footprint.kv_bytes
        + footprint.compute_bytes
    )
    room = budget_bytes - fixed
    most = sum(room // c.stride_nbytes for c in request.classes) if room > 0 else 0
    counts = divide_slots(
        request.classes, room - _work_bytes(request, footprint, min(most, _all(request)))
    )
    if counts is None or _widest_chunk(request, counts) < footprint.chunk_tokens:
        return None
    return _assemble(request, footprint, budget_bytes, tuple(counts))


def _assemble(
    request: Request, footprint: ChunkFootprint, budget_bytes: int, counts: tuple[int, ...]
) -> SlotPlan:
    slot_bytes = sum(n * c.stride_nbytes for n, c in zip(counts, request.classes, strict=True))
    plan = MemoryPlan(
        budget_bytes=budget_bytes,
        base_bytes=base_with_margin(request.base_bytes, budget_bytes),
        resident_bytes=request.catalog.resident_nbytes,
        kv_bytes=footprint.kv_bytes,
        compute_bytes=footprint.compute_bytes + _work_bytes(request, footprint, sum(counts)),
        slot_bytes=slot_bytes,
        slots=sum(counts),
        experts=request.catalog.n_experts_total,
        context_tokens=request.context_tokens,
        prefill_chunk_tokens=footprint.chunk_tokens,
    )
    return SlotPlan(plan, counts)


def _widest_chunk(request: Request, counts: Sequence[int]) -> int:
    """Return the most tokens of which no layer can ask for more experts than it has slots."""
    widest = 1 << 30
    for count, slot_class in zip(counts, request.classes, strict=True):
        for layer in slot_class.layers:
            if count < layer.n_experts:
                widest = min(widest, count // layer.n_experts_used)
    return widest


def _work_bytes(request: Request, footprint: ChunkFootprint, slots: int) -> int:
    """Bound the scratch memory of a product with experts: rows by slot, and its quantized input."""
    used = max(layer.n_experts_used for layer in request.catalog.layers)
    slots = max(slots, max(layer.n_experts for layer in request.catalog.layers))
    rows = used * footprint.chunk_tokens
    width = max(_dimension(request, "embedding_length"), _dimension(request, "feed_forward_length"))
    return slots * (rows * _ROW_MAPPING_NBYTES + 128) + rows * width * 2


def _dimension(request: Request, key: str) -> int:
    value = request.catalog.metadata.get(f"{request.catalog.architecture}.{key}", 0)
    if isinstance(value, tuple):
        value = max((v for v in value if isinstance(v, int)), default=0)
    return value if isinstance(value, int) else 0


def _all(request: Request) -> int:
    return request.catalog.n_experts_total


def _too_small(request: Request, budget_bytes: int) -> BudgetError:
    """Find the smallest budget that works by bisection, and say what takes the room."""
    low, high = budget_bytes, max(budget_bytes, 1 << 30)
    while not _works(request, high):
        high *= 2
    while high - low > 1 << 20:
        middle = (low + high) // 2
        low, high = (low, middle) if _works(request, middle) else (middle, high)
    catalog, least = request.catalog, request.footprints[-1]
    demand = sum(c.token_demand * c.stride_nbytes for c in request.classes)
    return BudgetError(
        f"a budget of {format_nbytes(budget_bytes)} is too small for this model: resident weights "
        f"take {format_nbytes(catalog.resident_nbytes)}, the KV cache of {request.context_tokens} "
        f"tokens {format_nbytes(least.kv_bytes)}, and one token routes to {catalog.token_demand} "
        f"experts of {format_nbytes(demand)}. Use --memory {format_nbytes_up(high)} or more"
        + (", or a smaller --context." if least.kv_bytes > 64 << 20 else ".")
    )


def _works(request: Request, budget_bytes: int) -> bool:
    return any(_plan_streaming(request, f, budget_bytes) for f in request.footprints)
