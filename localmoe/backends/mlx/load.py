"""From an MLX or safetensors checkpoint and settings to an engine: plan first, then allocate."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import mlx.core as mx

from localmoe.backends.generation import read_generation_config, sampling_values
from localmoe.backends.gguf_options import refuse_gguf_options
from localmoe.backends.mlx import device
from localmoe.backends.mlx.checkpoint import Checkpoint, open_checkpoint
from localmoe.backends.mlx.engine import MlxEngine
from localmoe.backends.mlx.footprint import Footprint, IdleSwitch, footprints, vocabulary
from localmoe.backends.mlx.generation import end_tokens
from localmoe.backends.mlx.pipeline import Pipeline
from localmoe.backends.mlx.pipelined import PipelinedModel, PipelinedServer
from localmoe.backends.mlx.pressure import PressureWatch, Source, system_pressure
from localmoe.backends.mlx.served_model import ServedModel
from localmoe.backends.mlx.server import ExpertServer, ServedSwitch
from localmoe.backends.mlx.slot_arrays import SlotArrays
from localmoe.backends.mlx.source import MlxSource, find_experts, marks_of
from localmoe.backends.mlx.switches import Switch, find_switches, replace_modules
from localmoe.backends.torch.tokenizer import TorchTokenizer
from localmoe.cache.bounce import BOUNCE_NBYTES, buffers_needed
from localmoe.cache.expert_cache import ExpertCache
from localmoe.cache.planes import PlanePool
from localmoe.cache.policy_table import POLICIES
from localmoe.cache.profile import Profile
from localmoe.cache.slots import SlotClass
from localmoe.cache.supply import FileSupply
from localmoe.errors import EngineError, UnsupportedModelError
from localmoe.planning.budget import SlotPlan
from localmoe.planning.machine import available_memory_bytes, held_memory_bytes
from localmoe.planning.request import Request
from localmoe.planning.slot_plan import plan_slots
from localmoe.settings import Progress, Ranks, Settings

_FREED_NBYTES = 64 << 20
"""What MLX may keep of freed memory, at least: short steps then allocate nothing."""


def load(
    path: str | Path,
    settings: Settings,
    progress: Progress | None = None,
    *,
    buffer_nbytes: int | None = None,
    pressure: Source | None = None,
) -> MlxEngine:
    """Load a checkpoint that mlx-lm knows within `settings.memory_bytes`.

    `path` is its folder, or a file in it. `buffer_nbytes` and `pressure` are asked of the system
    unless they are given: how long an array may be, and how short of memory everybody is. Raises
    SettingsError, ModelError, BudgetError, ExpertReadError, EngineError.
    """
    began = time.perf_counter()
    refuse_gguf_options(settings, "MLX")
    if progress:
        progress("loading weights", 0, 1)
    with ExitStack() as undo:
        assembly = _Assembly(open_checkpoint(Path(path)), settings, undo)
        engine = assembly.build(buffer_nbytes or device.largest_buffer_nbytes())
        source = pressure or system_pressure()
        if source:
            assembly.watch(source)
        undo.pop_all()
    if progress:
        progress("loading weights", 1, 1)
    engine.load_seconds = time.perf_counter() - began
    return engine


class _Assembly:
    """Builds an engine in the order in which its parts need each other."""

    def __init__(self, checkpoint: Checkpoint, settings: Settings, undo: ExitStack) -> None:
        self._checkpoint, self._settings, self._undo = checkpoint, settings, undo
        self._model = checkpoint.model
        self._pipeline: Pipeline | None = None
        self._served: ServedModel | None = None

    def build(self, buffer_nbytes: int) -> MlxEngine:
        """Plan, load what is resident, make slots, and put experts that are served in place."""
        switches, marks = self._emptied_switches(), marks_of(self._checkpoint)
        if self._settings.ranks:
            switches = self._split(self._settings.ranks, switches)
        n_vocab, context = vocabulary(self._model), self._context_tokens()
        found = self._exchanging(footprints(self._model, context))
        idle = dict(self._model.named_modules())
        used = {one.layer: max(1, idle[one.path].n_used) for one in switches}
        owns = self._pipeline.owns if self._pipeline else _every
        source = find_experts(self._checkpoint, marks, switches, used, owns)
        self._undo.callback(source.close)
        classes = source.classes(buffer_nbytes)
        slot_plan = self._plan(source, classes, found, context)
        self._load_resident()
        device.keep_freed(max(_FREED_NBYTES, slot_plan.plan.compute_bytes))
        served = self._serve(source, classes, slot_plan)
        plan = slot_plan.plan
        device.keep_resident(plan.total_bytes - plan.base_bytes)
        folder = self._settings.profile_dir
        served.warm_up(Profile(folder, source.catalog) if folder else None)
        ends = end_tokens(self._checkpoint.config)
        tokenizer = TorchTokenizer(self._checkpoint.folder, n_vocab, ends)
        sampling = sampling_values(read_generation_config(self._checkpoint.folder))
        return MlxEngine(served, tokenizer, plan, sampling)

    def watch(self, source: Source) -> None:
        """Have slots given back when the system is short of memory."""
        served = self._served
        assert served is not None  # build was called
        served.watch = PressureWatch(served.cache, served.pool, source)

    def _emptied_switches(self) -> tuple[Switch, ...]:
        """Take the experts' arrays out of the model: they are never evaluated."""
        switches = find_switches(self._model)
        if not switches:
            raise UnsupportedModelError(
                f"{self._checkpoint.model_type} has no routed experts in mlx-lm's switch modules: "
                "this engine is for models that have"
            )
        for switch in switches:
            self._check_type(switch)
            switch.put(())
        replace_modules(self._model, {one.path: IdleSwitch(one) for one in switches})
        return switches

    def _split(self, ranks: Ranks, switches: tuple[Switch, ...]) -> tuple[Switch, ...]:
        """Let go of the layers of other ranks; return this one's switches."""
        self._pipeline = Pipeline(self._model, ranks)
        paths = {path for path, _ in self._model.named_modules()}
        own = tuple(switch for switch in switches if switch.path in paths)
        if not own:
            raise UnsupportedModelError(
                f"the layers {list(self._pipeline.layers)} of this rank have no routed experts: "
                "run the model on fewer machines"
            )
        return own

    def _exchanging(self, found: tuple[Footprint, ...]) -> tuple[Footprint, ...]:
        """Add what a step holds for other ranks, where there are some."""
        stage, config = self._pipeline, self._checkpoint.config
        if stage is None:
            return found
        more = [stage.exchanged_bytes(one.chunk_tokens, config) for one in found]
        return tuple(
            replace(one, compute_bytes=one.compute_bytes + nbytes)
            for one, nbytes in zip(found, more, strict=True)
        )

    @staticmethod
    def _check_type(switch: Switch) -> None:
        is_quantized = any(array.name.endswith(".scales") for array in switch.arrays)
        wrong = [a for a in switch.arrays if a.name.endswith(".weight") and a.dtype != mx.float32]
        if wrong and not is_quantized and not device.multiplies_floats():
            raise UnsupportedModelError(
                f"MLX without a GPU multiplies experts that are quantized or float32, and "
                f"{switch.path} has {str(wrong[0].dtype).rpartition('.')[2]}: quantize the "
                "checkpoint with mlx_lm.convert, or use --engine torch"
            )

    def _context_tokens(self) -> int:
        config = self._checkpoint.config
        text = config.get("text_config") or {}
        longest = config.get("max_position_embeddings") or text.get("max_position_embeddings")
        wanted = self._settings.context_tokens
        return min(wanted, longest) if isinstance(longest, int) and longest > 0 else wanted

    def _plan(
        self,
        source: MlxSource,
        classes: tuple[SlotClass, ...],
        found: tuple[Footprint, ...],
        context_tokens: int,
    ) -> SlotPlan:
        """Decide where the memory goes, before any weight is read. Raises BudgetError."""
        settings = self._settings
        chunk = settings.prefill_chunk_tokens
        if chunk is not None:
            found = tuple(one for one in found if one.chunk_tokens <= chunk) or found[-1:]
        extra = source.resident_nbytes - source.catalog.resident_nbytes
        layers, workers = source.catalog.layers, settings.read_workers
        bounced = buffers_needed(layers, workers, tight=True) * BOUNCE_NBYTES
        request = Request(
            catalog=source.catalog,
            classes=classes,
            footprints=found,
            base_bytes=held_memory_bytes() + extra + bounced,
            context_tokens=context_tokens,
            threads=settings.n_threads,
        )
        budget = settings.memory_bytes or _default_budget()
        slot_plan = plan_slots(request, budget, settings.slots)
        plan = replace(
            slot_plan.plan,
            base_bytes=slot_plan.plan.base_bytes - extra,
            resident_bytes=slot_plan.plan.resident_bytes + extra,
        )
        return replace(slot_plan, plan=plan)

    def _load_resident(self) -> None:
        try:
            mx.eval(self._model.parameters())
        except (RuntimeError, ValueError) as error:
            raise EngineError(
                f"MLX could not read the weights of {self._checkpoint.folder}: {error}"
            ) from error

    def _serve(
        self, source: MlxSource, classes: tuple[SlotClass, ...], slot_plan: SlotPlan
    ) -> ServedModel:
        arrays = SlotArrays(classes, source.switches)
        pool = PlanePool(classes, slot_plan.counts, arrays.make)
        self._undo.callback(pool.close)
        layers = source.catalog.layers
        supply = FileSupply(layers, pool, source.files, self._settings.read_workers)
        cache = ExpertCache(layers, pool, supply, policy=POLICIES[self._settings.policy])
        self._undo.callback(cache.close)
        self._served = self._served_by(cache, source, (arrays, pool))
        server, switches = self._served.server, source.switches.values()
        replace_modules(self._model, {one.path: ServedSwitch(one, server) for one in switches})
        return self._served

    def _served_by(
        self, cache: ExpertCache, source: MlxSource, slots: tuple[SlotArrays, PlanePool]
    ) -> ServedModel:
        if self._pipeline is None:
            return ServedModel(self._model, source, slots, ExpertServer(cache))
        server = PipelinedServer(cache)
        return PipelinedModel(self._pipeline, self._model, source, slots, server)


def _every(_: str) -> bool:
    return True


def _default_budget() -> int:
    """Return what this process may take: no more than Metal recommends, where there is Metal."""
    return min(available_memory_bytes(), device.working_set_nbytes() or available_memory_bytes())
