"""How a budget is split for a model, before anything of it is allocated."""

from __future__ import annotations

from pathlib import Path

from localmoe.backends.llama.dry_run import CHUNK_CANDIDATES, DryRunChild, dry_run
from localmoe.backends.llama.source import ModelSource, open_source
from localmoe.cache.memory import CAN_RELEASE
from localmoe.errors import BudgetError
from localmoe.planning.budget import SlotPlan, plan_fixed_slots, plan_memory, smallest_budget_mib
from localmoe.planning.dense import smaller_context_tokens
from localmoe.planning.machine import held_memory_bytes, huge_pages_by_default
from localmoe.planning.planned_model import PlannedModel
from localmoe.planning.request import Request
from localmoe.planning.token_work import token_work
from localmoe.settings import Settings


def plan_model(path: str | Path, settings: Settings, budget_bytes: int) -> PlannedModel:
    """Plan what `load` would do in this budget, from headers alone.

    Raises what `load` raises before it reads weights.
    """
    source = open_source(path, settings.experts_used, settings.mirrors)
    try:
        plan = plan_source(source, settings, held_memory_bytes(), budget_bytes)
        return PlannedModel(source.catalog, token_work(source.headers, source.catalog), plan)
    finally:
        source.close()


def smallest_memory_mib(path: str | Path, settings: Settings) -> int:
    """Return the smallest budget that `load` accepts for a model, from headers alone. MiB.

    Raises ModelError, SettingsError, EngineError.
    """
    source = open_source(path, settings.experts_used, settings.mirrors)
    try:
        held = held_memory_bytes()
        return smallest_budget_mib(_request(source, settings, settings.context_tokens, held))
    finally:
        source.close()


def plan_source(
    source: ModelSource,
    settings: Settings,
    base_bytes: int,
    budget: int,
    child: DryRunChild | None = None,
) -> SlotPlan:
    """Split the budget, with llama.cpp's own figures for what it takes. Bytes.

    Raises BudgetError, ModelFormatError, SettingsError, EngineError.
    """
    request = _request(source, settings, settings.context_tokens, base_bytes, child)
    if settings.slots:
        return plan_fixed_slots(request, budget, settings.slots)
    try:
        return plan_memory(request, budget)
    except BudgetError as error:
        shorter = smaller_context_tokens(request.footprints[-1].kv_bytes, request.context_tokens)
        if source.catalog.layers or shorter is None:
            raise
        mib = smallest_budget_mib(_request(source, settings, shorter, base_bytes))
        raise BudgetError(f"{error} With --context {shorter}, {mib}MiB would do.") from None


def _request(
    source: ModelSource,
    settings: Settings,
    context_tokens: int,
    base_bytes: int,
    child: DryRunChild | None = None,
) -> Request:
    """Ask llama.cpp what it takes for this context, cut to what the model was trained for."""
    catalog = source.catalog
    trained = catalog.metadata.get(f"{catalog.architecture}.context_length")
    if isinstance(trained, int):
        context_tokens = min(context_tokens, trained)
    longest = min(settings.prefill_chunk_tokens or CHUNK_CANDIDATES[0], context_tokens)
    findings = dry_run(
        catalog.paths,
        context_tokens=context_tokens,
        chunks=[longest, *(c for c in CHUNK_CANDIDATES if c < longest)],
        experts_used=source.override,
        kv_type=settings.kv_type,
        child=child,
    )
    return Request(
        catalog=catalog,
        classes=source.slot_classes,
        footprints=findings.footprints,
        base_bytes=base_bytes + findings.model_bytes,
        context_tokens=context_tokens,
        kv_type=settings.kv_type,
        mark_bytes=findings.footprints[-1].mark_bytes,
        threads=settings.n_threads,
        lends=CAN_RELEASE,
        sparse=not huge_pages_by_default(),
    )
