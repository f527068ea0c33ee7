"""Where the memory goes: decided while a model has no weights yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from localmoe.backends.torch.device import TorchDevice
from localmoe.backends.torch.footprint import Footprint, footprints
from localmoe.backends.torch.source import TorchSource
from localmoe.backends.torch.stripped import Stripped
from localmoe.cache.bounce import BOUNCE_NBYTES, buffers_needed
from localmoe.planning.budget import SlotPlan, plan_fixed_slots, plan_memory, plan_shared
from localmoe.planning.machine import available_memory_bytes, held_memory_bytes
from localmoe.planning.plan import MemoryPlan
from localmoe.planning.request import Request
from localmoe.settings import Settings

_FREE_SHARE = 0.95
"""Of a device's free memory, what is used where nothing is said: others need some, too."""


@dataclass(frozen=True)
class Planned:
    """What was found of a model, and how many slots of each class there are, per level."""

    source: TorchSource
    stripped: Stripped
    plan: MemoryPlan
    counts: tuple[int, ...]
    """In the memory that is computed in."""
    behind: tuple[int, ...] = ()
    """In host memory, where that is another one."""


def plan_model(
    model: PreTrainedModel,
    found: tuple[TorchSource, Stripped],
    settings: Settings,
    device: TorchDevice | None,
) -> Planned:
    """Split the budgets for a model without weights. Raises BudgetError, EngineError."""
    source, stripped = found
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    context = min(settings.context_tokens, longest or settings.context_tokens)
    chunks = _footprints(model, stripped, context, settings.prefill_chunk_tokens)
    bounced = buffers_needed(source.catalog.layers, settings.read_workers) * BOUNCE_NBYTES
    host = Request(
        catalog=source.catalog,
        classes=source.slot_classes,
        footprints=chunks,
        base_bytes=held_memory_bytes() + bounced,
        context_tokens=context,
        threads=settings.n_threads,
    )
    host_budget = settings.memory_bytes or available_memory_bytes()
    if device is None:
        near = _with_decoded(host, source)
        planned = _plan_near(near, host_budget, settings.slots)
        return Planned(source, stripped, _said(planned.plan, source), planned.counts)
    near = replace(host, classes=source.device_classes, base_bytes=0, option="--vram")
    budget = settings.vram_bytes or int(device.free_bytes() * _FREE_SHARE)
    planned = _plan_near(_with_decoded(near, source), budget, settings.slots)
    behind = _plan_behind(host, host_budget)
    plan = replace(_said(planned.plan, source), behind=behind.plan)
    return Planned(source, stripped, plan, planned.counts, behind.counts)


def _footprints(
    model: PreTrainedModel, stripped: Stripped, context: int, chunk: int | None
) -> Sequence[Footprint]:
    found = footprints(model, stripped, context)
    if chunk is None:
        return found
    return [one for one in found if one.chunk_tokens <= chunk] or found[-1:]


def _with_decoded(request: Request, source: TorchSource) -> Request:
    """Count what resident weights grow by when they are decoded."""
    return replace(request, base_bytes=request.base_bytes + _decoded_nbytes(source))


def _decoded_nbytes(source: TorchSource) -> int:
    return source.resident_nbytes - source.catalog.resident_nbytes


def _said(plan: MemoryPlan, source: TorchSource) -> MemoryPlan:
    """Return a plan that counts what is decoded as weights."""
    extra = _decoded_nbytes(source)
    base, resident = plan.base_bytes - extra, plan.resident_bytes + extra
    return replace(plan, base_bytes=base, resident_bytes=resident)


def _plan_near(request: Request, budget_bytes: int, slots: int | None) -> SlotPlan:
    """Split what is computed in; all experts lie in slots here, also where all of them fit."""
    if slots:
        return plan_fixed_slots(request, budget_bytes, slots)
    found = plan_memory(request, budget_bytes)
    if found.counts:
        return found
    footprint = next(
        each for each in request.footprints if each.chunk_tokens == found.plan.prefill_chunk_tokens
    )
    alone = replace(request, footprints=[footprint])
    return plan_shared(alone, budget_bytes, [c.token_demand for c in request.classes])


def _plan_behind(request: Request, budget_bytes: int) -> SlotPlan:
    """Split host memory where nothing is computed: it holds experts on their way, and more.

    A step may ask for a whole layer at once.
    """
    nothing = Footprint(request.footprints[0].chunk_tokens, 0, 0)
    catalog = replace(request.catalog, resident=())
    alone = replace(request, catalog=catalog, footprints=[nothing])
    return plan_shared(alone, budget_bytes, [c.widest_demand for c in request.classes])
