"""From a safetensors checkpoint and settings to an engine: plan first, then allocate."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from localmoe.backends.torch.engine import TorchEngine
from localmoe.backends.torch.expert_sources import ExpertSource
from localmoe.backends.torch.footprint import footprints
from localmoe.backends.torch.generation import read_generation
from localmoe.backends.torch.loader import load_resident
from localmoe.backends.torch.routed import RoutedExperts
from localmoe.backends.torch.routing_hooks import hook_routers
from localmoe.backends.torch.served_model import ServedModel
from localmoe.backends.torch.server import ExpertServer
from localmoe.backends.torch.slot_weights import (
    DecodedWeights,
    Place,
    SlotWeights,
    StoredWeights,
    memory_tensor,
)
from localmoe.backends.torch.source import Checkpoint, TorchSource, find_experts, open_checkpoint
from localmoe.backends.torch.stripped import Stripped
from localmoe.backends.torch.tokenizer import TorchTokenizer
from localmoe.cache.bounce import BOUNCE_NBYTES, buffers_needed
from localmoe.cache.expert_cache import ExpertCache
from localmoe.cache.policy_table import POLICIES
from localmoe.cache.profile import Profile
from localmoe.cache.slots import SlotPool, share_slots, slots_nbytes
from localmoe.errors import BudgetError, SettingsError, UnsupportedModelError
from localmoe.planning.budget import SlotPlan, plan_fixed_slots, plan_memory
from localmoe.planning.machine import available_memory_bytes, held_memory_bytes
from localmoe.planning.request import Request
from localmoe.settings import Progress, Settings


def load(path: str | Path, settings: Settings, progress: Progress | None = None) -> TorchEngine:
    """Load a safetensors checkpoint within `settings.memory_bytes`.

    `path` is its folder, or a file in it. Raises SettingsError, ModelError, BudgetError,
    ExpertReadError, EngineError.
    """
    began = time.perf_counter()
    _check(settings)
    with ExitStack() as undo:
        assembly = _Assembly(open_checkpoint(Path(path)), settings, undo)
        engine = assembly.build(progress)
        undo.pop_all()
    engine.load_seconds = time.perf_counter() - began
    return engine


def _check(settings: Settings) -> None:
    """Raise SettingsError for what only another engine can do."""
    for name, value, default in (
        ("--kv-type", settings.kv_type, Settings.kv_type),
        ("--experts-used", settings.experts_used, None),
        ("--mirror", settings.mirrors, ()),
    ):
        if value != default:
            raise SettingsError(f"{name} is for GGUF files: the torch engine has no such option")


@dataclass(frozen=True)
class _Planned:
    """What was found and decided before any weight was read."""

    source: TorchSource
    stripped: Stripped
    slot_plan: SlotPlan


class _Assembly:
    """Builds an engine in the order in which its parts need each other."""

    def __init__(self, checkpoint: Checkpoint, settings: Settings, undo: ExitStack) -> None:
        self._checkpoint, self._settings, self._undo = checkpoint, settings, undo
        self._planned: _Planned | None = None

    def build(self, progress: Progress | None) -> TorchEngine:
        """Plan, load what is resident, make slots, and put experts that are served in place."""
        if progress:
            progress("loading weights", 0, 1)
        torch.set_num_threads(self._settings.n_threads)
        checkpoint = self._checkpoint
        generation = read_generation(checkpoint.folder, checkpoint.config.config)
        model = load_resident(
            checkpoint.config.config, checkpoint.weights, checkpoint.dtype, self._plan
        )
        planned = self._planned
        assert planned is not None  # transformers has called _plan
        n_vocab = model.get_output_embeddings().weight.shape[0]
        tokenizer = TorchTokenizer(checkpoint.folder, n_vocab, generation.ends)
        pool = SlotPool(planned.source.slot_classes, planned.slot_plan.counts)
        self._undo.callback(pool.close)
        cache = ExpertCache(
            planned.source.catalog.layers,
            pool,
            planned.source.files,
            workers=self._settings.read_workers,
            policy=POLICIES[self._settings.policy],
        )
        self._undo.callback(cache.close)
        server = ExpertServer(cache)
        _attach(model, planned, pool, server)
        pool.grow()
        if progress:
            progress("loading weights", 1, 1)
        served = ServedModel(model, planned.source, pool, server)
        folder = self._settings.profile_dir
        served.warm_up(Profile(folder, planned.source.catalog) if folder else None)
        return TorchEngine(served, tokenizer, planned.slot_plan.plan, generation.sampling)

    def _plan(self, model: PreTrainedModel, stripped: Stripped) -> None:
        """Decide where the memory goes, before any weight is read. Raises BudgetError."""
        source = find_experts(self._checkpoint, model, stripped)
        self._undo.callback(source.close)
        if not source.catalog.layers:
            raise UnsupportedModelError(
                f"{source.catalog.architecture} has no routed experts: this engine is for those "
                "that have. Run a GGUF of it instead"
            )
        settings = self._settings
        longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        context = min(settings.context_tokens, longest or settings.context_tokens)
        extra = source.resident_nbytes - source.catalog.resident_nbytes
        workers = settings.read_workers
        bounced = buffers_needed(source.catalog.layers, workers) * BOUNCE_NBYTES
        request = Request(
            catalog=source.catalog,
            classes=source.slot_classes,
            footprints=self._footprints(model, stripped, context),
            base_bytes=held_memory_bytes() + extra + bounced,
            context_tokens=context,
            threads=settings.n_threads,
        )
        budget = settings.memory_bytes or available_memory_bytes()
        found = plan_slots(request, budget, settings.slots)
        plan = replace(
            found.plan,
            base_bytes=found.plan.base_bytes - extra,
            resident_bytes=found.plan.resident_bytes + extra,
        )
        self._planned = _Planned(source, stripped, replace(found, plan=plan))

    def _footprints(self, model: PreTrainedModel, stripped: Stripped, context: int) -> Any:
        found = footprints(model, stripped, context)
        chunk = self._settings.prefill_chunk_tokens
        if chunk is None:
            return found
        return [one for one in found if one.chunk_tokens <= chunk] or found[-1:]


def _attach(
    model: PreTrainedModel, planned: _Planned, pool: SlotPool, server: ExpertServer
) -> None:
    """Have every module of experts served from the slots."""
    memory = memory_tensor(pool.memory)
    layers = {layer.layer: layer for layer in planned.source.catalog.layers}
    for one in planned.stripped.modules:
        layer, index = layers[one.layer], pool.class_index(one.layer)
        parts = []
        for part, names in enumerate(one.parts):
            place = Place(
                pool.start(index, 0) + server.cache.data_start(one.layer, part),
                pool.classes[index].stride_nbytes,
                pool.counts[index],
            )
            sources = [planned.source.sources[f"{one.name}.{name}"] for name in names]
            parts.append(_weights(memory, place, sources))
        module: Any = one.module
        module.localmoe = RoutedExperts(layer, module, server, (parts[0], parts[1]))
        hook_routers(model, one.name, layer, server)


def _weights(memory: torch.Tensor, place: Place, sources: list[ExpertSource]) -> SlotWeights:
    if all(source.is_stored for source in sources):
        return StoredWeights(memory, place, [s.shape for s in sources], sources[0].dtype)
    return DecodedWeights(memory, place, sources)


def plan_slots(request: Request, budget_bytes: int, slots: int | None) -> SlotPlan:
    """Split the budget; all experts lie in slots here, also where all of them fit.

    Raises BudgetError, SettingsError.
    """
    if slots:
        return plan_fixed_slots(request, budget_bytes, slots)
    found = plan_memory(request, budget_bytes)
    if found.counts:
        return found
    rest = found.plan.total_bytes - found.plan.slot_bytes
    counts = share_slots(
        request.classes,
        [c.token_demand for c in request.classes],
        lambda counts: rest + slots_nbytes(request.classes, counts) <= budget_bytes,
    )
    if counts is None:
        raise BudgetError("the slots of one token's experts do not fit")
    nbytes = slots_nbytes(request.classes, counts)
    plan = replace(found.plan, slots=sum(counts), slot_bytes=nbytes)
    return SlotPlan(plan, tuple(counts))
