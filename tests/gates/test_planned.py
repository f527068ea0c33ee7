"""What a plan says of bytes is what llama.cpp's own loader says, for every model of the zoo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import zoo
from localmoe.backends.llama import parameters
from localmoe.backends.llama.bindings import L
from localmoe.backends.llama.planned import plan_model
from localmoe.backends.llama.skeleton import Skeleton
from localmoe.settings import Settings
from localmoe.weights.shards import read_shards

BUDGET = 8 << 30  # what this process holds by now counts, too


def model_nbytes(path: Path) -> int:
    """Return the bytes of all tensors that llama.cpp makes of a file."""
    L.llama_backend_init()
    with Skeleton(read_shards(path)) as skeleton:
        model = parameters.open_model(skeleton.paths, dry=True)
        nbytes = int(L.llama_model_size(model))
        L.llama_model_free(model)
    return nbytes


@pytest.mark.parametrize("name", zoo.MODELS)
def test_bytes_are_those_of_llama_cpps_loader(name: str, zoo_model: Callable[[str], Path]) -> None:
    path = zoo_model(name)
    planned = plan_model(path, Settings(context_tokens=64), BUDGET)
    plan = planned.slot_plan.plan
    found = plan.resident_bytes + planned.catalog.expert_nbytes
    unused = sum(tensor.extent.nbytes for tensor in planned.catalog.unused)
    assert found + unused == pytest.approx(model_nbytes(path), rel=0.01)
    assert plan.total_bytes <= BUDGET
    work = planned.work
    assert work.resident_nbytes <= plan.resident_bytes
    assert 0 < work.routed_nbytes <= planned.catalog.expert_nbytes
