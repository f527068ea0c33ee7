"""A dense model in a budget: as a whole, or refused with what would do."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from localmoe.errors import BudgetError, SettingsError
from localmoe.planning.budget import (
    plan_fixed_slots,
    plan_memory,
    smallest_budget_mib,
)
from localmoe.planning.dense import smaller_context_tokens
from localmoe.planning.request import Request
from localmoe.weights.catalog import Catalog, Extent, ResidentTensor

MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True)
class Footprint:
    chunk_tokens: int
    kv_bytes: int
    compute_bytes: int


FOOTPRINTS = tuple(Footprint(n, 32 * MIB, 20 * MIB + n * MIB) for n in (512, 128, 32, 8, 1))
DENSE = Request(
    Catalog(
        architecture="any",
        paths=("file",),
        resident=(ResidentTensor("all", Extent("file", 0, 100 * MIB)),),
        layers=(),
        metadata={"any.embedding_length": 1024, "any.feed_forward_length": 4096},
    ),
    (),
    FOOTPRINTS,
    50 * MIB,
    4096,
)


def refusal(budget_bytes: int) -> BudgetError:
    with pytest.raises(BudgetError) as refused:
        plan_memory(DENSE, budget_bytes)
    return refused.value


def least_named(error: BudgetError) -> int:
    found = re.search(r"Use --memory (\d+)MiB or more", str(error))
    assert found, str(error)
    return int(found[1]) * MIB


def test_a_dense_model_is_resident_with_the_longest_chunk_that_fits() -> None:
    plan = plan_memory(DENSE, 16 * GIB).plan
    assert (plan.slots, plan.experts, plan.slot_bytes, plan.streams) == (0, 0, 0, False)
    assert plan.prefill_chunk_tokens == 512
    assert plan.compute_bytes >= FOOTPRINTS[0].compute_bytes + 512 * 4096
    least = least_named(refusal(GIB // 8))
    assert plan_memory(DENSE, least + 40 * MIB).plan.prefill_chunk_tokens == 32
    assert plan_memory(DENSE, least + 12 * MIB).plan.prefill_chunk_tokens == 8


def test_a_dense_model_that_does_not_fit_is_refused_with_the_least_that_works() -> None:
    error = refusal(128 * MIB)
    for words in ("dense", "100.00 MiB", "32.00 MiB", "smaller quantization", "Mixture-of-Experts"):
        assert words in str(error)
    least = least_named(error)
    assert smallest_budget_mib(DENSE) * MIB == least
    assert plan_memory(DENSE, least).plan.total_bytes <= least
    assert least_named(refusal(least - MIB)) == least


def test_slots_of_a_dense_model_are_refused() -> None:
    with pytest.raises(SettingsError, match="dense"):
        plan_fixed_slots(DENSE, GIB, 8)


@pytest.mark.parametrize(
    ("kv_bytes", "context", "wanted"),
    [(32 * MIB, 4096, None), (GIB, 4096, 1024), (GIB, 1024, 512), (GIB, 1023, None)],
)
def test_a_smaller_context_is_named_where_it_helps(
    kv_bytes: int, context: int, wanted: int | None
) -> None:
    assert smaller_context_tokens(kv_bytes, context) == wanted
