"""From a path and settings to an engine: plan first, then allocate."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import psutil

from localmoe.backends.llama import parameters
from localmoe.backends.llama.bindings import L, Tensor
from localmoe.backends.llama.dry_run import CHUNK_CANDIDATES, dry_run
from localmoe.backends.llama.engine import LlamaEngine, Streaming
from localmoe.backends.llama.hook import Hook, PartOf
from localmoe.backends.llama.loader import LoadedModel, load_model
from localmoe.cache.direct_file import DirectFile
from localmoe.cache.expert_cache import ExpertCache
from localmoe.cache.slots import SlotPool, slot_classes
from localmoe.errors import SettingsError, UnsupportedModelError
from localmoe.planning.budget import Request, SlotPlan, plan_fixed_slots, plan_memory
from localmoe.planning.machine import available_memory_bytes
from localmoe.settings import Progress, Settings, available_threads
from localmoe.weights.catalog import Catalog
from localmoe.weights.gguf import build_catalog
from localmoe.weights.gguf_header import GgufHeader
from localmoe.weights.shards import read_shards


def load(path: str | Path, settings: Settings, progress: Progress | None = None) -> LlamaEngine:
    """Load a GGUF Mixture-of-Experts model within `settings.memory_bytes`.

    Raises ModelError, BudgetError, ExpertReadError, EngineError.
    """
    began = time.perf_counter()
    L.llama_backend_init()
    headers = read_shards(path)
    catalog = _with_experts_used(build_catalog(headers), settings.experts_used)
    files = {name: DirectFile(name) for name in catalog.paths}
    try:
        slot_plan = _plan(headers, catalog, files, settings)
        engine = _Assembly(headers, catalog, files, settings, slot_plan, progress).build()
    except BaseException:
        for file in files.values():
            file.close()
        raise
    engine.load_seconds = time.perf_counter() - began
    return engine


def _with_experts_used(catalog: Catalog, experts_used: int | None) -> Catalog:
    if experts_used is None:
        return catalog
    fewest = min(layer.n_experts for layer in catalog.layers)
    if experts_used > fewest:
        raise SettingsError(f"experts_used is {experts_used}, but a layer has {fewest} experts")
    layers = tuple(replace(layer, n_experts_used=experts_used) for layer in catalog.layers)
    return replace(catalog, layers=layers)


def _override(catalog: Catalog, settings: Settings) -> tuple[str, int] | None:
    if settings.experts_used is None:
        return None
    return f"{catalog.architecture}.expert_used_count", settings.experts_used


def _plan(
    headers: tuple[GgufHeader, ...],
    catalog: Catalog,
    files: dict[str, DirectFile],
    settings: Settings,
) -> SlotPlan:
    """Split the budget, with llama.cpp's own figures for what it takes."""
    trained = catalog.metadata.get(f"{catalog.architecture}.context_length")
    context_tokens = settings.context_tokens
    if isinstance(trained, int):
        context_tokens = min(context_tokens, trained)
    longest = min(settings.prefill_chunk_tokens or CHUNK_CANDIDATES[0], context_tokens)
    chunks = [longest, *(c for c in CHUNK_CANDIDATES if c < longest)]
    findings = dry_run(
        [header.path for header in headers],
        context_tokens=context_tokens,
        chunks=chunks,
        experts_used=_override(catalog, settings),
    )
    block = max(file.block for file in files.values())
    request = Request(
        catalog=catalog,
        classes=slot_classes(catalog.layers, block),
        footprints=findings.footprints,
        base_bytes=psutil.Process().memory_info().rss + findings.model_bytes,
        context_tokens=context_tokens,
    )
    budget = settings.memory_bytes or available_memory_bytes()
    if settings.slots:
        return plan_fixed_slots(request, budget, settings.slots)
    return plan_memory(request, budget)


class _Assembly:
    """Builds an engine from its plan, in the order in which its parts need each other."""

    def __init__(
        self,
        headers: tuple[GgufHeader, ...],
        catalog: Catalog,
        files: dict[str, DirectFile],
        settings: Settings,
        slot_plan: SlotPlan,
        progress: Progress | None,
    ) -> None:
        self._headers, self._catalog, self._files = headers, catalog, files
        self._settings, self._plan, self._counts = settings, slot_plan.plan, slot_plan.counts
        self._progress, self._done = progress, 0
        weights = self._plan.resident_bytes + (0 if self._counts else self._plan.slot_bytes)
        # Weights count twice, when their pages are touched and when they are read; slots once.
        self._total = 2 * weights + (self._plan.slot_bytes if self._counts else 0)

    def build(self) -> LlamaEngine:
        """Load the weights, then the slots, then create the context."""
        model = load_model(
            self._headers,
            self._catalog,
            self._files,
            stream=bool(self._counts),
            on_bytes=self._on_bytes,
            experts_used=_override(self._catalog, self._settings),
            workers=self._settings.read_workers,
        )
        streaming: Streaming | None = None
        try:
            if self._counts:
                streaming = self._streaming(model)
            context = parameters.open_context(
                model.handle,
                context_tokens=self._plan.context_tokens,
                chunk_tokens=self._plan.prefill_chunk_tokens,
                threads=self._settings.threads or available_threads(),
                eval_callback=streaming.hook.callback if streaming else None,
            )
        except BaseException:
            model.close()
            if streaming:
                streaming.close()
            raise
        return LlamaEngine(
            self._catalog, self._plan, model, context, streaming, self._files
        )

    def _on_bytes(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress:
            self._progress("loading weights", min(self._done, self._total), self._total)

    def _streaming(self, model: LoadedModel) -> Streaming:
        """Make the slots and the cache, and point every expert tensor at them."""
        block = max(file.block for file in self._files.values())
        classes = slot_classes(self._catalog.layers, block)
        pool = SlotPool(classes, self._counts, self._on_bytes)
        cache = ExpertCache(
            self._catalog.layers, pool, self._files, workers=self._settings.read_workers
        )
        try:
            parts = self._bind(model, pool, cache)
        except BaseException:
            cache.close()
            pool.close()
            raise
        layers = {layer.layer: layer for layer in self._catalog.layers}
        return Streaming(pool, cache, Hook(cache, layers, parts, self._scaled_layers()))

    def _bind(self, model: LoadedModel, pool: SlotPool, cache: ExpertCache) -> dict[int, PartOf]:
        """Let slot numbers take the place of expert numbers in every expert tensor."""
        where = {
            part.tensor: PartOf(layer.layer, index)
            for layer in self._catalog.layers
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
            start = pool.start(class_index, 0) + cache.data_start(what.layer, what.part)
            tensor.data = pool.memory.address + start
            axis = 2 if name.endswith(".weight") else 1
            stride, count = pool.classes[class_index].stride_nbytes, pool.counts[class_index]
            tensor.ne[axis], tensor.nb[axis] = count, stride
            for outer in range(axis + 1, 4):
                tensor.nb[outer] = stride * count
            parts[address] = what
        return parts

    def _scaled_layers(self) -> frozenset[int]:
        """Return the layers with a scale per expert, which llama.cpp looks up by expert number."""
        names = {tensor.name for tensor in self._catalog.resident}
        return frozenset(
            layer.layer
            for layer in self._catalog.layers
            for part in layer.parts
            if part.tensor.removesuffix("weight") + "scale" in names
        )
