"""Splitting a budget: what becomes resident, the prefill chunk, the smallest that works."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import pytest

from localmoe.cache.slots import slot_classes, slots_nbytes
from localmoe.errors import BudgetError
from localmoe.planning.budget import (
    MARGIN_BYTES,
    SlotPlan,
    base_with_margin,
    plan_fixed_slots,
    plan_memory,
)
from localmoe.planning.plan import MemoryPlan
from localmoe.planning.request import Request
from localmoe.planning.sizes import format_nbytes
from localmoe.weights.catalog import Catalog, ExpertPart, Extent, MoeLayer, ResidentTensor

MIB = 1 << 20
GIB = 1 << 30
N_LAYERS, N_EXPERTS, N_USED = 8, 64, 4
TILE_NBYTES = 512 << 10
"""What llama.cpp's tiled kernels take for each thread."""


@dataclass(frozen=True)
class Footprint:
    chunk_tokens: int
    kv_bytes: int
    compute_bytes: int


FOOTPRINTS = tuple(Footprint(n, 32 * MIB, 20 * MIB + n * MIB) for n in (512, 128, 32, 8, 1))


def layer(number: int, part_nbytes: int, n_experts: int = N_EXPERTS) -> MoeLayer:
    parts = tuple(
        ExpertPart(f"part{i}", Extent("file", 0, n_experts * part_nbytes), part_nbytes)
        for i in range(2)
    )
    return MoeLayer(number, n_experts, N_USED, parts)


def request_for(*layers: MoeLayer, **metadata: int) -> Request:
    catalog = Catalog(
        architecture="any",
        paths=("file",),
        resident=(ResidentTensor("embedding", Extent("file", 0, 100 * MIB)),),
        layers=layers,
        metadata={f"any.{key}": value for key, value in metadata.items()},
    )
    return Request(catalog, slot_classes(layers, 512), FOOTPRINTS, 50 * MIB, 4096)


REQUEST = request_for(
    *(layer(i, (2 if i % 2 else 1) * MIB) for i in range(N_LAYERS)), embedding_length=1024
)
EXPERT_BYTES = REQUEST.catalog.expert_nbytes
FIXED_BYTES = 50 * MIB + MARGIN_BYTES + (100 + 32 + 20) * MIB


def least_named(error: BudgetError) -> int:
    found = re.search(r"Use --memory (\d+)MiB or more", str(error))
    assert found, str(error)
    return int(found[1]) * MIB


def test_everything_fits() -> None:
    slot_plan = plan_memory(REQUEST, 16 * GIB)
    plan = slot_plan.plan
    assert slot_plan.counts == ()
    assert not plan.streams
    assert plan.slot_bytes == EXPERT_BYTES
    assert plan.slots == plan.experts == N_LAYERS * N_EXPERTS
    assert (plan.prefill_chunk_tokens, plan.context_tokens) == (512, 4096)


def test_half_of_the_experts_fit() -> None:
    budget = EXPERT_BYTES // 2 + FIXED_BYTES
    slot_plan = plan_memory(REQUEST, budget)
    plan = slot_plan.plan
    assert plan.streams
    assert plan.slots == sum(slot_plan.counts)
    assert 0.3 < plan.slots / plan.experts < 0.5
    assert plan.resident_bytes == 100 * MIB
    assert plan.kv_bytes == 32 * MIB
    assert plan.base_bytes == base_with_margin(50 * MIB, budget)
    assert plan.total_bytes <= budget


def test_memory_is_used_up() -> None:
    for budget in range(EXPERT_BYTES // 4 + FIXED_BYTES, EXPERT_BYTES // 2, 77 * MIB):
        plan = plan_memory(REQUEST, budget).plan
        assert budget - plan.total_bytes < 5 * MIB  # the larger of the two slots is 4 MiB


def test_a_longer_chunk_takes_a_quarter_of_the_slots_at_most() -> None:
    for budget in range(400 * MIB, EXPERT_BYTES + FIXED_BYTES, 50 * MIB):
        plan = plan_memory(REQUEST, budget).plan
        assert plan.streams
        assert plan.compute_bytes - FOOTPRINTS[-1].compute_bytes <= plan.slot_bytes / 4


def test_small_budgets_get_short_chunks_and_large_ones_long_chunks() -> None:
    with pytest.raises(BudgetError) as caught:
        plan_memory(REQUEST, 64 * MIB)
    least = least_named(caught.value)
    assert plan_memory(REQUEST, least).plan.prefill_chunk_tokens == 1
    assert plan_memory(REQUEST, EXPERT_BYTES).plan.prefill_chunk_tokens == 128


def test_a_chunk_may_ask_for_more_experts_than_there_are_slots() -> None:
    """They are computed in passes, and the plan has room for those."""
    few = replace(REQUEST, footprints=tuple(replace(f, compute_bytes=0) for f in FOOTPRINTS))
    slot_plan = plan_memory(few, 500 * MIB)
    chunk = slot_plan.plan.prefill_chunk_tokens
    assert max(slot_plan.counts) < min(N_EXPERTS, N_USED * chunk)
    # Rows of 1024 numbers in, 1024 out for each token; a class that is never tight needs none.
    enough = request_for(*(layer(i, MIB) for i in range(16)), embedding_length=1024)
    enough = replace(enough, footprints=few.footprints)
    loose = plan_memory(enough, 500 * MIB).plan
    assert loose.prefill_chunk_tokens == chunk
    assert slot_plan.plan.compute_bytes >= chunk * 1024 * 4
    product = loose.slots * (4 * chunk * 8 + 128) + 4 * chunk * 1024 * 2
    assert loose.compute_bytes <= product + TILE_NBYTES


@pytest.mark.parametrize(("embedding", "expert"), [(2048, 768), (1024, 1024), (512, 2048)])
def test_passes_have_room_for_the_widest_rows_in_and_out(embedding: int, expert: int) -> None:
    widths = {"embedding_length": embedding, "expert_feed_forward_length": expert}
    tight = fixed_plan(request_for(*REQUEST.catalog.layers, **widths))
    # So few experts that no step asks for more than there are slots.
    few = [replace(m, n_experts=2 * N_USED) for m in REQUEST.catalog.layers]
    loose = fixed_plan(request_for(*few, **widths))
    tokens = FOOTPRINTS[0].chunk_tokens
    # Gate, up and down in turn; gate and up may be one product.
    moved = tokens * (max(embedding, expert) + max(embedding, 2 * expert)) * 4
    mapping = N_EXPERTS * (tokens * 8 + 128)
    product = mapping + tokens * max(embedding, expert) * 2 + TILE_NBYTES
    assert tight.compute_bytes - loose.compute_bytes == moved + product


def fixed_plan(request: Request) -> MemoryPlan:
    """Return a plan with 32 slots of each size."""
    return plan_fixed_slots(request, GIB, 64).plan


def test_each_thread_needs_scratch_memory_in_each_work_buffer() -> None:
    more = plan_fixed_slots(replace(REQUEST, threads=64), GIB, 64).plan
    one = plan_fixed_slots(REQUEST, GIB, 64).plan
    assert more.compute_bytes - one.compute_bytes == 2 * 63 * TILE_NBYTES
    resident = plan_memory(replace(REQUEST, threads=64), 16 * GIB).plan
    assert resident.compute_bytes - plan_memory(REQUEST, 16 * GIB).plan.compute_bytes == (
        63 * TILE_NBYTES
    )


def test_all_resident_with_a_shorter_chunk_is_better_than_streaming() -> None:
    fixed = EXPERT_BYTES + FIXED_BYTES + EXPERT_BYTES // 90
    plan = plan_memory(REQUEST, fixed + 200 * MIB).plan
    assert (plan.streams, plan.prefill_chunk_tokens) == (False, 128)


def test_all_resident_with_the_chunk_that_was_asked_for_is_resident() -> None:
    short = replace(REQUEST, footprints=FOOTPRINTS[3:])
    plan = plan_memory(short, 16 * GIB).plan
    assert (plan.streams, plan.prefill_chunk_tokens) == (False, 8)
    tiny = request_for(layer(0, 4096), embedding_length=1024)
    plan = plan_memory(replace(tiny, footprints=FOOTPRINTS[3:]), 16 * GIB).plan
    assert (plan.streams, plan.prefill_chunk_tokens) == (False, 8)


def test_all_resident_with_a_very_short_chunk_is_not() -> None:
    budget = EXPERT_BYTES + FIXED_BYTES + EXPERT_BYTES // 90 + 16 * MIB
    plan = plan_memory(REQUEST, budget).plan
    assert (plan.streams, plan.prefill_chunk_tokens) == (True, 128)


def test_the_error_names_what_takes_the_room() -> None:
    with pytest.raises(BudgetError) as caught:
        plan_memory(REQUEST, 200 * MIB)
    message = str(caught.value)
    assert "a budget of 200.00 MiB is too small" in message
    assert "resident weights take 100.00 MiB" in message
    assert "the KV cache of 4096 tokens 32.00 MiB" in message
    assert "the 32 experts that one token routes to 96.00 MiB" in message
    assert "--context" not in message


def test_the_error_blames_a_large_context() -> None:
    large = tuple(replace(f, kv_bytes=GIB) for f in FOOTPRINTS)
    with pytest.raises(BudgetError, match="or a smaller --context"):
        plan_memory(replace(REQUEST, footprints=large), 200 * MIB)


@pytest.mark.parametrize("budget", [1, 64 * MIB, 300 * MIB])
def test_the_smallest_budget_is_the_same_whatever_was_given(budget: int) -> None:
    with pytest.raises(BudgetError) as caught:
        plan_memory(REQUEST, budget)
    least = least_named(caught.value)
    assert plan_memory(REQUEST, least).plan.total_bytes <= least
    with pytest.raises(BudgetError):
        plan_memory(REQUEST, least - MIB)


def test_slots_with_more_slack_than_bytes_do_not_raise_the_smallest_budget() -> None:
    """Tiny experts take 2 blocks a part in slots, and hardly anything when all are resident."""
    tiny = request_for(*(layer(i, 1, n_experts=4) for i in range(4096)))
    with pytest.raises(BudgetError) as caught:
        plan_memory(tiny, MIB)
    plan = plan_memory(tiny, least_named(caught.value)).plan
    assert not plan.streams


def test_wider_models_need_more_scratch_memory() -> None:
    layers = REQUEST.catalog.layers
    narrow = plan_memory(request_for(*layers, embedding_length=64), 16 * GIB).plan
    for key in ("embedding_length", "feed_forward_length", "expert_feed_forward_length"):
        wide = plan_memory(request_for(*layers, **{key: 4096}), 16 * GIB).plan
        assert wide.compute_bytes - narrow.compute_bytes == 512 * N_USED * 2 * (4096 - 64)


# --- memory lent to long steps --------------------------------------------------------------------

LENDING = replace(REQUEST, lends=True)
"""Chunks of 512 tokens need 512 MiB more than single tokens do."""


def test_slots_are_lent_to_the_longest_chunk_and_not_to_short_steps() -> None:
    budget = EXPERT_BYTES // 2 + FIXED_BYTES + 600 * MIB
    slot_plan = plan_memory(LENDING, budget)
    plan = slot_plan.plan
    assert (plan.streams, plan.prefill_chunk_tokens) == (True, 512)
    assert [loan.tokens for loan in slot_plan.loans] == [32, 128, 512]
    assert slot_plan.loans[0].counts == slot_plan.counts
    sums = [sum(loan.counts) for loan in slot_plan.loans]
    assert sums == sorted(sums, reverse=True)
    # Four times what 32 tokens take is always there, 12 MiB at edges of huge pages included.
    assert 220 * MIB <= plan.compute_bytes <= 240 * MIB
    assert plan.lent_bytes == pytest.approx((512 + 20 - 4 * 52) * MIB, abs=5 * MIB)
    assert plan.total_bytes <= budget


def test_during_every_step_the_budget_holds() -> None:
    for budget in range(400 * MIB, EXPERT_BYTES, 90 * MIB):
        slot_plan = plan_memory(LENDING, budget)
        rest = slot_plan.plan.total_bytes - slot_plan.plan.compute_bytes - slot_plan.plan.slot_bytes
        longest = next(
            f for f in FOOTPRINTS if f.chunk_tokens == slot_plan.plan.prefill_chunk_tokens
        )
        for loan in slot_plan.loans:
            step = next(f for f in FOOTPRINTS if f.chunk_tokens == loan.tokens)
            compute = min(4 * step.compute_bytes, longest.compute_bytes)
            assert rest + compute + slots_nbytes(LENDING.classes, loan.counts) <= budget
            demands = [c.token_demand for c in LENDING.classes]
            assert all(n >= least for n, least in zip(loan.counts, demands, strict=True))


def test_no_more_than_half_of_the_slots_is_lent() -> None:
    for budget in range(400 * MIB, EXPERT_BYTES, 90 * MIB):
        plan = plan_memory(LENDING, budget).plan
        assert plan.lent_bytes <= plan.slot_bytes // 2


def test_short_chunks_resident_models_and_fixed_slots_need_no_loan() -> None:
    short = replace(LENDING, footprints=FOOTPRINTS[2:])
    assert plan_memory(short, EXPERT_BYTES).loans == ()
    resident = plan_memory(LENDING, 16 * GIB)
    assert (resident.loans, resident.plan.lent_bytes) == ((), 0)
    assert plan_fixed_slots(LENDING, GIB, 64).loans == ()


def test_rows_that_are_never_touched_take_no_memory_in_small_pages() -> None:
    plan = plan_fixed_slots(REQUEST, GIB, 256).plan
    sparse = plan_fixed_slots(replace(REQUEST, sparse=True), GIB, 256).plan
    # 128 slots of each size: room for 4 x 512 rows of 8 bytes behind each, 512 of them touched.
    assert plan.compute_bytes - sparse.compute_bytes == 128 * (4 * 4096 - 3 * 4096)


# --- a fixed number of slots ----------------------------------------------------------------------


def fixed(slots: int) -> SlotPlan:
    return plan_fixed_slots(REQUEST, GIB, slots)


@pytest.mark.parametrize("slots", [8, 9, 31, 100, 511])
def test_fixed_slots_are_all_used(slots: int) -> None:
    slot_plan = fixed(slots)
    assert sum(slot_plan.counts) == slot_plan.plan.slots == slots
    assert max(slot_plan.counts) - min(slot_plan.counts) <= 1
    assert slot_plan.plan.streams


def test_more_slots_than_experts() -> None:
    assert fixed(10_000).counts == (256, 256)


def test_fixed_slots_keep_the_longest_chunk() -> None:
    assert {fixed(n).plan.prefill_chunk_tokens for n in (8, 63, 64, 127, 128)} == {512}


def test_too_few_fixed_slots_name_the_least() -> None:
    with pytest.raises(BudgetError, match="7 slots are fewer .* use at least 8"):
        fixed(7)


# --- sizes for people -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nbytes", "wanted"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1536 * 1024, "1.50 MiB"),
        (3 * GIB, "3.00 GiB"),
    ],
)
def test_format_nbytes(nbytes: int, wanted: str) -> None:
    assert format_nbytes(nbytes) == wanted
