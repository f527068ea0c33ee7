"""How a budget is split for a safetensors checkpoint, from headers and config.json: without torch.

The torch engine finds out what it needs by running the model where nothing is computed. Without
torch that is estimated here, and the budget is split by the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from localmoe.cache.bounce import BOUNCE_NBYTES, buffers_needed
from localmoe.cache.direct_file import DirectFile
from localmoe.cache.slots import slot_classes
from localmoe.errors import SettingsError, UnsupportedModelError
from localmoe.planning.budget import (
    SlotPlan,
    plan_fixed_slots,
    plan_memory,
    plan_shared,
    smallest_budget_mib,
)
from localmoe.planning.checkpoint_work import checkpoint_work, resident_nbytes
from localmoe.planning.kept_context import kept_context
from localmoe.planning.planned_model import PlannedModel
from localmoe.planning.request import Request
from localmoe.planning.step_bytes import LONGEST_CHUNK, step_nbytes
from localmoe.settings import Settings
from localmoe.weights.checkpoint_layout import CheckpointLayout, read_layout

CHUNKS = (LONGEST_CHUNK, 256, 128, 64, 32, 16, 8, 1)
"""Lengths of steps that the torch engine takes."""
PROGRAM_BYTES = 450 << 20
"""What Python with torch and transformers holds before a model is there."""
_REFUSED = ("minimax", "qwen3_omni_moe", "qwen3_omni_moe_thinker")
"""Kinds of models whose experts can be found, and that the torch engine cannot run."""


@dataclass(frozen=True)
class _Footprint:
    """What a step of so many tokens needs. See `planning.request.ChunkFootprint`."""

    chunk_tokens: int
    kv_bytes: int
    compute_bytes: int


def plan_checkpoint(path: str | Path, settings: Settings, budget_bytes: int) -> PlannedModel:
    """Plan what the torch engine would do in this budget.

    Raises SettingsError, ModelError, BudgetError.
    """
    layout = _layout(path, settings)
    request, extra = _request(layout, settings)
    found = _split(request, budget_bytes, settings.slots)
    plan = replace(
        found.plan,
        base_bytes=found.plan.base_bytes - extra,
        resident_bytes=found.plan.resident_bytes + extra,
    )
    work = checkpoint_work(layout)
    return PlannedModel(layout.catalog, work, replace(found, plan=plan), "torch")


def _split(request: Request, budget_bytes: int, slots: int | None) -> SlotPlan:
    """Split the budget; all experts lie in slots, also where all of them fit."""
    if slots:
        return plan_fixed_slots(request, budget_bytes, slots)
    found = plan_memory(request, budget_bytes)
    if found.counts:
        return found
    chunk = found.plan.prefill_chunk_tokens
    footprint = next(each for each in request.footprints if each.chunk_tokens == chunk)
    alone = replace(request, footprints=[footprint])
    return plan_shared(alone, budget_bytes, [c.token_demand for c in request.classes])


def smallest_checkpoint_mib(path: str | Path, settings: Settings) -> int:
    """Return the smallest budget that works, in MiB. Raises SettingsError, ModelError."""
    return smallest_budget_mib(_request(_layout(path, settings), settings)[0])


def _layout(path: str | Path, settings: Settings) -> CheckpointLayout:
    for name, value, default in (
        ("--kv-type", settings.kv_type, Settings.kv_type),
        ("--experts-used", settings.experts_used, None),
        ("--mirror", settings.mirrors, ()),
    ):
        if value != default:
            raise SettingsError(f"{name} is for GGUF files: the torch engine has no such option")
    layout = read_layout(path)
    kind = layout.catalog.architecture
    if not layout.catalog.layers:
        raise UnsupportedModelError(
            f"{kind} has no routed experts: the torch engine is for models that have. Run a GGUF "
            "of it instead"
        )
    if kind in _REFUSED:
        raise UnsupportedModelError(
            f"models of the kind {kind} cannot be streamed by the torch engine yet "
            "(docs/torch-seam.md). Run a GGUF of it instead"
        )
    return layout


def _request(layout: CheckpointLayout, settings: Settings) -> tuple[Request, int]:
    """Return what a plan is made for, and by how much resident weights grow when decoded."""
    catalog = layout.catalog
    trained = layout.config.context_tokens
    context = min(settings.context_tokens, trained or settings.context_tokens)
    extra = resident_nbytes(layout) - catalog.resident_nbytes
    bounced = buffers_needed(catalog.layers, settings.read_workers) * BOUNCE_NBYTES
    with closing(DirectFile(catalog.paths[0])) as file:
        block = file.block
    request = Request(
        catalog=catalog,
        classes=slot_classes(catalog.layers, block),
        footprints=_footprints(layout, settings, context),
        base_bytes=PROGRAM_BYTES + extra + bounced,
        context_tokens=context,
        threads=settings.n_threads,
    )
    return request, extra


def _footprints(
    layout: CheckpointLayout, settings: Settings, context_tokens: int
) -> Sequence[_Footprint]:
    kept = kept_context(layout, context_tokens)
    longest = settings.prefill_chunk_tokens or CHUNKS[0]
    chunks = [chunk for chunk in CHUNKS if chunk <= min(longest, context_tokens)] or [1]
    return [
        _Footprint(chunk, kept.nbytes, step_nbytes(layout, context_tokens, chunk))
        for chunk in chunks
    ]
