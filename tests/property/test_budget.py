"""For random models and budgets: no plan exceeds its budget, and more memory never does harm."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from localmoe.cache.slots import SlotClass, share_slots, slot_classes, slots_nbytes
from localmoe.errors import BudgetError
from localmoe.planning.budget import plan_fixed_slots, plan_memory
from localmoe.planning.request import Request
from localmoe.weights.catalog import Catalog, ExpertPart, Extent, MoeLayer, ResidentTensor

MIB = 1 << 20
QUICK = settings(max_examples=100, deadline=None)
PART_NBYTES = st.sampled_from([1, 511, 512, 5000, 128 << 10, 300_000, MIB, 5 * MIB + 32])


@dataclass(frozen=True)
class Footprint:
    chunk_tokens: int
    kv_bytes: int
    compute_bytes: int


@st.composite
def moe_layers(draw: st.DrawFn) -> tuple[MoeLayer, ...]:
    layers = []
    for number in range(draw(st.integers(1, 6))):
        n_experts = draw(st.integers(1, 200))
        parts = []
        for index in range(draw(st.integers(1, 3))):
            nbytes, place = draw(PART_NBYTES), 32 * draw(st.integers(0, 300))
            extent = Extent("file", place, nbytes * n_experts)
            parts.append(ExpertPart(f"part{index}", extent, nbytes))
        used = draw(st.integers(1, n_experts))
        layers.append(MoeLayer(number, n_experts, used, tuple(parts)))
    return tuple(layers)


@st.composite
def classes(draw: st.DrawFn) -> tuple[SlotClass, ...]:
    return slot_classes(draw(moe_layers()), draw(st.sampled_from([1, 512, 4096])))


@st.composite
def requests(draw: st.DrawFn) -> Request:
    layers = draw(moe_layers())
    kv, compute = draw(st.integers(0, 300 * MIB)), draw(st.integers(0, 50 * MIB))
    per_token = draw(st.integers(0, 2 * MIB))
    footprints = [Footprint(n, kv, compute + n * per_token) for n in (512, 64, 16, 4, 1)]
    resident = Extent("file", 0, draw(st.integers(1, 500 * MIB)))
    catalog = Catalog(
        architecture="any",
        paths=("file",),
        resident=(ResidentTensor("embedding", resident),),
        layers=layers,
        metadata={"any.embedding_length": draw(st.integers(1, 8192))},
    )
    block = draw(st.sampled_from([1, 512, 4096]))
    base_bytes = draw(st.integers(0, 200 * MIB))
    return Request(
        catalog,
        slot_classes(layers, block),
        footprints,
        base_bytes,
        4096,
        lends=draw(st.booleans()),
        sparse=draw(st.booleans()),
    )


def smallest(request: Request) -> int:
    """Return the smallest budget that works, as the error for a far too small one names it."""
    with pytest.raises(BudgetError) as caught:
        plan_memory(request, 1)
    found = re.search(r"Use --memory (\d+)MiB or more", str(caught.value))
    assert found, str(caught.value)
    return int(found[1]) * MIB


@QUICK
@given(requests(), st.floats(0, 1))
def test_no_plan_exceeds_its_budget(request: Request, fraction: float) -> None:
    top = smallest(request) + request.catalog.expert_nbytes + 1200 * MIB
    budget = int(smallest(request) + fraction * (top - smallest(request)))
    slot_plan = plan_memory(request, budget)
    plan = slot_plan.plan
    assert plan.total_bytes <= budget
    assert plan.streams == bool(slot_plan.counts)
    if slot_plan.counts:
        assert plan.slot_bytes == slots_nbytes(request.classes, slot_plan.counts)
        assert plan.slots == sum(slot_plan.counts)
    for loan in slot_plan.loans:
        assert all(a <= b for a, b in zip(loan.counts, slot_plan.counts, strict=True))
        lent = slots_nbytes(request.classes, slot_plan.counts)
        assert lent - slots_nbytes(request.classes, loan.counts) <= plan.lent_bytes
    for count, slot_class in zip(slot_plan.counts, request.classes, strict=bool(slot_plan.counts)):
        assert slot_class.token_demand <= count <= slot_class.n_experts


@QUICK
@given(requests())
def test_the_named_budget_works_and_less_does_not(request: Request) -> None:
    least = smallest(request)
    assert plan_memory(request, least).plan.total_bytes <= least
    with pytest.raises(BudgetError, match=f"Use --memory {least // MIB}MiB or more"):
        plan_memory(request, least - MIB)


@QUICK
@given(requests(), st.lists(st.integers(0, 2000 * MIB), min_size=2, max_size=12))
def test_more_budget_never_gives_fewer_slots_at_the_same_chunk(
    request: Request, extras: list[int]
) -> None:
    most: dict[int, tuple[int, ...]] = {}
    everything = tuple(c.n_experts for c in request.classes)
    for extra in sorted(extras):
        slot_plan = plan_memory(request, smallest(request) + extra)
        counts = slot_plan.counts or everything
        before = most.get(slot_plan.plan.prefill_chunk_tokens, counts)
        assert all(a <= b for a, b in zip(before, counts, strict=True))
        most[slot_plan.plan.prefill_chunk_tokens] = counts


@QUICK
@given(requests())
def test_with_room_for_everything_everything_is_resident(request: Request) -> None:
    parts = request.catalog.expert_nbytes + request.catalog.resident_nbytes + request.base_bytes
    plan = plan_memory(request, 2 * parts + 8192 * MIB).plan
    assert (plan.streams, plan.prefill_chunk_tokens) == (False, 512)


@QUICK
@given(requests(), st.integers(1, 1500))
def test_fixed_slots_are_never_exceeded(request: Request, slots: int) -> None:
    try:
        slot_plan = plan_fixed_slots(request, 1, slots)
    except BudgetError as error:
        found = re.search(r"use at least (\d+)\.", str(error))
        assert found
        assert int(found[1]) > slots
        slots = int(found[1])
        slot_plan = plan_fixed_slots(request, 1, slots)
    assert sum(slot_plan.counts) == min(slots, request.catalog.n_experts_total)
    for count, slot_class in zip(slot_plan.counts, request.classes, strict=True):
        assert count >= max(layer.n_experts_used for layer in slot_class.layers)


# --- division over size classes -------------------------------------------------------------------


def divide_slots(found: tuple[SlotClass, ...], nbytes: int) -> list[int] | None:
    """Share memory, with room for what one token routes to, as the planner does."""
    demand = [c.token_demand for c in found]
    return share_slots(found, demand, lambda counts: slots_nbytes(found, counts) <= nbytes)


@QUICK
@given(classes(), st.integers(0, 400 * MIB), st.integers(0, 10 * MIB))
def test_division_of_memory(found: tuple[SlotClass, ...], nbytes: int, more: int) -> None:
    counts = divide_slots(found, nbytes)
    demand = [c.token_demand for c in found]
    if counts is None:
        assert slots_nbytes(found, demand) > nbytes
        return
    left = nbytes - slots_nbytes(found, counts)
    assert left >= 0
    for count, slot_class in zip(counts, found, strict=True):
        assert slot_class.token_demand <= count <= slot_class.n_experts
    growing = [c for n, c in zip(counts, found, strict=True) if n < c.n_experts]
    assert not growing or left < max(c.stride_nbytes for c in growing)
    grown = divide_slots(found, nbytes + more)
    assert grown is not None
    assert all(a <= b for a, b in zip(counts, grown, strict=True))


@QUICK
@given(classes())
def test_division_of_enough_memory_gives_every_expert_a_slot(
    found: tuple[SlotClass, ...],
) -> None:
    everything = [c.n_experts for c in found]
    nbytes = slots_nbytes(found, everything)
    assert divide_slots(found, nbytes) == everything
    less = divide_slots(found, nbytes - 1)
    assume(less is not None)
    assert less != everything
