"""Splits a memory budget into resident weights, KV cache, compute buffers and expert slots."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from localmoe.cache.slots import SlotClass, share_slots, slots_nbytes
from localmoe.errors import BudgetError, SettingsError
from localmoe.planning.dense import LARGE_KV_BYTES, dense_too_small
from localmoe.planning.plan import MemoryPlan
from localmoe.planning.sizes import format_nbytes
from localmoe.settings import KvType
from localmoe.weights.catalog import Catalog

MARGIN_BYTES = 96 << 20
"""For what cannot be planned: thread stacks, Python objects, page tables, library pages.

While a state is saved or restored llama.cpp copies the keys of one layer: they come out of it, too.
"""
_MARGIN_FRACTION = 0.01
_CHUNK_SHARE = 4
"""A prefill chunk's buffers may take up to a quarter of what is left for slots."""
_RESIDENT_CHUNK_TOKENS = 32
"""Shorter chunks slow prefill more than a few missing experts do."""
_WIDTH_KEYS = ("embedding_length", "feed_forward_length", "expert_feed_forward_length")
_ROW_MAPPING_NBYTES = 8  # per slot, expert of a token and token: llama.cpp groups rows by expert
_TILE_NBYTES = 512 << 10  # per thread, in each of llama.cpp's work buffers: TILED_WS_SLOT


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
    """Longest chunk first; the last is that of a single token."""
    base_bytes: int
    context_tokens: int
    kv_type: KvType = "f16"
    mark_bytes: int = 0
    threads: int = 1


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


def _is_resident(slot_plan: SlotPlan, least_chunk_tokens: int) -> bool:
    """Whether all experts are in memory, and not at the price of a very slow prefill."""
    chunk_tokens = slot_plan.plan.prefill_chunk_tokens
    return not slot_plan.counts and chunk_tokens >= least_chunk_tokens


def _leaves_room(plan: MemoryPlan, shortest: MemoryPlan) -> bool:
    """Whether a chunk's buffers cost little beside the slots, compared with the shortest chunk."""
    extra = (plan.kv_bytes + plan.compute_bytes) - (shortest.kv_bytes + shortest.compute_bytes)
    return extra <= plan.slot_bytes // _CHUNK_SHARE


def _plan(request: Request, footprint: ChunkFootprint, budget_bytes: int) -> SlotPlan | None:
    """Return the plan for this chunk length, or None where its slots would be too few."""
    resident = _assemble(request, footprint, budget_bytes, ())
    if resident.plan.total_bytes <= budget_bytes:
        return resident
    if not request.classes:
        return None
    fixed = resident.plan.total_bytes - resident.plan.slot_bytes
    fixed -= _work_bytes(request, footprint, ())

    def fits(counts: Sequence[int]) -> bool:
        work = _work_bytes(request, footprint, counts)
        return fixed + slots_nbytes(request.classes, counts) + work <= budget_bytes

    counts = share_slots(request.classes, [c.token_demand for c in request.classes], fits)
    if counts is None:
        return None
    return _assemble(request, footprint, budget_bytes, counts)


def _assemble(
    request: Request, footprint: ChunkFootprint, budget_bytes: int, counts: Sequence[int]
) -> SlotPlan:
    """Return the plan with so many slots of each class; no counts: all experts are resident."""
    catalog = request.catalog
    plan = MemoryPlan(
        budget_bytes=budget_bytes,
        base_bytes=base_with_margin(request.base_bytes, budget_bytes),
        resident_bytes=catalog.resident_nbytes,
        kv_bytes=footprint.kv_bytes,
        compute_bytes=footprint.compute_bytes + _work_bytes(request, footprint, counts),
        slot_bytes=slots_nbytes(request.classes, counts) if counts else catalog.expert_nbytes,
        slots=sum(counts) if counts else catalog.n_experts_total,
        experts=catalog.n_experts_total,
        context_tokens=request.context_tokens,
        prefill_chunk_tokens=footprint.chunk_tokens,
        kv_type=request.kv_type,
        mark_bytes=request.mark_bytes,
    )
    return SlotPlan(plan, tuple(counts))


def _work_bytes(request: Request, footprint: ChunkFootprint, counts: Sequence[int]) -> int:
    """Bound the scratch memory of a product with experts: rows by slot, and its quantized input.

    llama.cpp keeps one such buffer, as large as the largest product of the graph needs.
    """
    layers = request.catalog.layers
    width = max(_dimension(request, key) for key in _WIDTH_KEYS)
    if not layers:
        return _product_bytes(request, 0, footprint.chunk_tokens, width)
    n_matrices = max(counts or (layer.n_experts for layer in layers))
    rows = max(layer.n_experts_used for layer in layers) * footprint.chunk_tokens
    whole = _product_bytes(request, n_matrices, rows, width)
    return whole + _passes_bytes(request, footprint, counts)


def _product_bytes(request: Request, n_matrices: int, rows: int, width: int) -> int:
    mapping = n_matrices * (rows * _ROW_MAPPING_NBYTES + 128)
    return mapping + rows * width * 2 + request.threads * _TILE_NBYTES


def _passes_bytes(request: Request, footprint: ChunkFootprint, counts: Sequence[int]) -> int:
    """Bound what passes take where a step can ask for more experts than there may be slots.

    A pass has at most as many rows as the step has tokens, and buffers for them of its own.
    """
    tokens = footprint.chunk_tokens
    # Not by the slots that there are: less memory for passes with more slots would let a plan fit
    # again that did not fit with fewer.
    demands = [(c.token_demand, c) for c in (request.classes if counts else ())]
    tight = [
        layer.n_experts
        for demand, slot_class in demands
        for layer in slot_class.layers
        if demand < min(layer.n_experts, layer.n_experts_used * tokens)
    ]
    if not tight:
        return 0
    embedding = _dimension(request, "embedding_length")
    expert = _dimension(request, "expert_feed_forward_length")
    expert = expert or _dimension(request, "feed_forward_length")
    widest = max(embedding, expert)
    results = max(embedding, 2 * expert)  # gate and up may be one product
    moved = tokens * (widest + results) * 4
    return _product_bytes(request, max(tight), tokens, widest) + moved


def _dimension(request: Request, key: str) -> int:
    value = request.catalog.metadata.get(f"{request.catalog.architecture}.{key}", 0)
    if isinstance(value, tuple):
        value = max((v for v in value if isinstance(v, int)), default=0)
    return value if isinstance(value, int) else 0


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
        f"Use --memory {mib}MiB or more"
        + (", or a smaller --context." if least.kv_bytes > LARGE_KV_BYTES else ".")
    )


def _works(request: Request, budget_bytes: int) -> bool:
    return any(_plan(request, footprint, budget_bytes) for footprint in request.footprints)
