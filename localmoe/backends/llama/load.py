"""From a path and settings to an engine: plan first, then allocate."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from localmoe.backends.llama import parameters
from localmoe.backends.llama.bindings import L, Tensor
from localmoe.backends.llama.callback import Callback
from localmoe.backends.llama.dry_run import DryRunChild
from localmoe.backends.llama.engine import LlamaEngine
from localmoe.backends.llama.hook import PartOf
from localmoe.backends.llama.kernels import Kernels
from localmoe.backends.llama.lending import Lender
from localmoe.backends.llama.loader import LoadedModel, load_model, read_resident
from localmoe.backends.llama.planned import plan_source
from localmoe.backends.llama.sharing import CoreSharing
from localmoe.backends.llama.source import ModelSource, open_source
from localmoe.backends.llama.streaming import Streaming
from localmoe.backends.llama.tensor_reads import TensorReads
from localmoe.cache.expert_cache import ExpertCache
from localmoe.cache.policy_table import POLICIES
from localmoe.cache.profile import Profile
from localmoe.cache.slots import SlotPool, slots_nbytes
from localmoe.cache.supply import FileSupply
from localmoe.errors import UnsupportedModelError
from localmoe.native.library import library
from localmoe.planning.budget import (
    SlotPlan,
    base_with_margin,
)
from localmoe.planning.machine import (
    available_memory_bytes,
    held_memory_bytes,
)
from localmoe.settings import Progress, Settings, available_threads


def load(
    path: str | Path,
    settings: Settings,
    progress: Progress | None = None,
    child: DryRunChild | None = None,
) -> LlamaEngine:
    """Load a GGUF model within `settings.memory_bytes`.

    A dense model, which has no experts to stream, must fit as a whole. `child` was started before,
    so that it is ready when it is asked. Raises SettingsError, ModelError, BudgetError,
    ExpertReadError, EngineError.
    """
    began = time.perf_counter()
    L.llama_backend_init()
    source = open_source(path, settings.experts_used, settings.mirrors)
    try:
        engine = _load(source, settings, progress, child)
    except BaseException:
        source.close()
        raise
    engine.load_seconds = time.perf_counter() - began
    return engine


def _load(
    source: ModelSource, settings: Settings, progress: Progress | None, child: DryRunChild | None
) -> LlamaEngine:
    """Plan while what is resident in any case is being read, then build."""
    base_bytes = held_memory_bytes()
    budget = settings.memory_bytes or available_memory_bytes()
    reads = None
    if settings.slots or _least_bytes(source, base_bytes, budget) <= budget:
        reads = read_resident(source, settings.read_workers)
    try:
        slot_plan = plan_source(source, settings, base_bytes, budget, child)
        assembly = _Assembly(source, settings, slot_plan, progress)
    except BaseException:
        if reads:
            reads.close()
        raise
    return assembly.build(reads)


def _least_bytes(source: ModelSource, base_bytes: int, budget: int) -> int:
    """Return what no plan can do without: where that does not fit, nothing is read."""
    classes = source.slot_classes
    demand = slots_nbytes(classes, [c.token_demand for c in classes])
    return base_with_margin(base_bytes, budget) + source.catalog.resident_nbytes + demand


class _Assembly:
    """Builds an engine from its plan, in the order in which its parts need each other."""

    def __init__(
        self,
        source: ModelSource,
        settings: Settings,
        slot_plan: SlotPlan,
        progress: Progress | None,
    ) -> None:
        self._source, self._settings = source, settings
        self._plan, self._counts = slot_plan.plan, slot_plan.counts
        self._loans = slot_plan.loans
        self._progress, self._done = progress, 0
        self._total = self._plan.resident_bytes + (0 if self._counts else self._plan.slot_bytes)

    def build(self, resident: TensorReads | None) -> LlamaEngine:
        """Create the model, the slots and the context while the weights are read."""
        model = load_model(
            self._source,
            stream=bool(self._counts),
            workers=self._settings.read_workers,
            resident=resident,
        )
        with ExitStack() as undo:
            undo.callback(model.close)
            streaming = self._streaming(model) if self._counts else None
            if streaming:
                undo.callback(streaming.close)
            context = parameters.open_context(
                model.handle,
                context_tokens=self._plan.context_tokens,
                chunk_tokens=self._plan.prefill_chunk_tokens,
                threads=self._settings.n_threads,
                kv_type=self._plan.kv_type,
                eval_callback=streaming.callback.eval_callback if streaming else None,
            )
            undo.callback(L.llama_free, context)
            model.wait(self._on_bytes)
            if streaming:
                streaming.pool.grow()
                self._warm_up(streaming)
            sharing = self._sharing() if streaming and streaming.callback.counts() else None
            engine = LlamaEngine(self._source, self._plan, model, context, streaming, sharing)
            undo.pop_all()
        return engine

    def _warm_up(self, streaming: Streaming) -> None:
        """Begin with the experts of earlier runs; this run's are remembered when it ends."""
        directory = self._settings.profile_dir
        if directory:
            streaming.profile = Profile(directory, self._source.catalog)
            streaming.cache.warm_up(streaming.profile.read())

    def _sharing(self) -> CoreSharing:
        settings = self._settings
        fixed = settings.threads is not None
        return CoreSharing(settings.n_threads, available_threads(), fixed=fixed)

    def _on_bytes(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress:
            self._progress("loading weights", min(self._done, self._total), self._total)

    def _streaming(self, model: LoadedModel) -> Streaming:
        """Make the slots and the cache, and point every expert tensor at them."""
        catalog = self._source.catalog
        layers = {layer.layer: layer for layer in catalog.layers}
        with ExitStack() as undo:
            compiled = library() if self._settings.compiled else None
            pool = SlotPool(self._source.slot_classes, self._counts)
            undo.callback(pool.close)
            cache = ExpertCache(
                catalog.layers,
                pool,
                FileSupply(catalog.layers, pool, self._source.files, self._settings.read_workers),
                policy=POLICIES[self._settings.policy],
                library=compiled,
            )
            undo.callback(cache.close)
            parts = self._bind(model, pool, cache)
            kernels = Kernels(self._settings.n_threads)
            scaled = self._scaled_layers()
            callback = Callback(cache, layers, parts, kernels, scaled, compiled)
            undo.pop_all()
        return Streaming(pool, cache, callback, Lender(cache, self._loans))

    def _bind(self, model: LoadedModel, pool: SlotPool, cache: ExpertCache) -> dict[int, PartOf]:
        """Let slot numbers take the place of expert numbers in every expert tensor."""
        where = {
            part.tensor: PartOf(layer.layer, index)
            for layer in self._source.catalog.layers
            for index, part in enumerate(layer.parts)
        }
        parts = {}
        for name, address in model.experts.items():
            what = where.get(name)
            if what is None:
                raise UnsupportedModelError(
                    f"llama.cpp loaded the expert tensor {name}, which no layer in use has"
                )
            class_index = pool.class_index(what.layer)
            tensor = Tensor.from_address(address)
            tensor.data = pool.memory.address + cache.placement.start(what.layer, 0, what.part)
            axis = 2 if name.endswith(".weight") else 1
            stride, count = pool.classes[class_index].stride_nbytes, pool.counts[class_index]
            tensor.ne[axis], tensor.nb[axis] = count, stride
            for outer in range(axis + 1, 4):
                tensor.nb[outer] = stride * count
            parts[address] = what
        return parts

    def _scaled_layers(self) -> frozenset[int]:
        """Return the layers with a scale per expert, which llama.cpp looks up by expert number."""
        names = {tensor.name for tensor in self._source.catalog.resident}
        return frozenset(
            layer.layer
            for layer in self._source.catalog.layers
            for part in layer.parts
            if part.tensor.removesuffix("weight") + "scale" in names
        )
