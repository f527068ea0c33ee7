"""From a safetensors checkpoint and settings to an engine: plan first, then allocate."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import torch
from transformers import PreTrainedModel

from localmoe.backends.gguf_options import refuse_gguf_options
from localmoe.backends.torch.attached import attach
from localmoe.backends.torch.device import TorchDevice
from localmoe.backends.torch.engine import TorchEngine
from localmoe.backends.torch.generation import read_generation
from localmoe.backends.torch.levels import Levels, one_level, two_levels
from localmoe.backends.torch.loader import load_resident
from localmoe.backends.torch.planned import Planned, plan_model
from localmoe.backends.torch.served_model import ServedModel
from localmoe.backends.torch.source import Checkpoint, find_experts, open_checkpoint
from localmoe.backends.torch.stripped import Stripped
from localmoe.backends.torch.tokenizer import TorchTokenizer
from localmoe.backends.torch.weight_reads import WeightReads
from localmoe.cache.profile import Profile
from localmoe.errors import EngineError, SettingsError, UnsupportedModelError
from localmoe.settings import Progress, Settings


def load(
    path: str | Path,
    settings: Settings,
    progress: Progress | None = None,
    device: TorchDevice | None = None,
) -> TorchEngine:
    """Load a safetensors checkpoint within `settings.memory_bytes`.

    `path` is its folder, or a file in it. `device` is where to compute; None: what the settings
    say. Raises SettingsError, ModelError, BudgetError, ExpertReadError, EngineError.
    """
    began = time.perf_counter()
    refuse_gguf_options(settings, "torch")
    device = device or _device(settings)
    with ExitStack() as undo:
        assembly = _Assembly(open_checkpoint(Path(path)), settings, device, undo)
        try:
            engine = assembly.build(progress)
        except torch.OutOfMemoryError as error:
            raise EngineError(
                f"the GPU has less memory than was planned with: {str(error).strip()[:200]}. Give "
                "a smaller --vram"
            ) from error
        undo.pop_all()
    engine.load_seconds = time.perf_counter() - began
    return engine


def _device(settings: Settings) -> TorchDevice | None:
    """Return the GPU that is to be used; None: the processor computes. Raises SettingsError."""
    has_gpu = torch.cuda.is_available()
    if settings.device == "cuda" and not has_gpu:
        why = (
            "this torch was built without CUDA" if torch.version.cuda is None else "none was found"
        )
        raise SettingsError(
            f"--device cuda wants an NVIDIA GPU, and {why}: leave it out, or see "
            "what `localmoe doctor` says of the GPU"
        )
    if settings.device == "cpu" or not has_gpu:
        if settings.vram_bytes is not None:
            raise SettingsError(
                "--vram is for a GPU, and the processor computes here: leave it out"
            )
        return None
    return TorchDevice(torch.device("cuda", torch.cuda.current_device()))


class _Assembly:
    """Builds an engine in the order in which its parts need each other."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: Settings,
        device: TorchDevice | None,
        undo: ExitStack,
    ) -> None:
        self._checkpoint, self._settings = checkpoint, settings
        self._device, self._undo = device, undo
        self._planned: Planned | None = None

    def build(self, progress: Progress | None) -> TorchEngine:
        """Plan, load what is resident, make slots, and put experts that are served in place."""
        torch.set_num_threads(self._settings.n_threads)
        checkpoint = self._checkpoint
        generation = read_generation(checkpoint.folder, checkpoint.config.config)
        reads = WeightReads(self._device.device if self._device else None, progress)

        def plan(model: PreTrainedModel, stripped: Stripped) -> None:
            self._plan(model, stripped)
            assert self._planned is not None
            resident = self._planned.source.resident
            reads.total_nbytes = sum(weight.nbytes for weight in resident.values())

        model = load_resident(
            checkpoint.config.config, checkpoint.weights, checkpoint.dtype, reads, plan
        )
        planned = self._planned
        assert planned is not None  # transformers has called _plan
        n_vocab = model.get_output_embeddings().weight.shape[0]
        tokenizer = TorchTokenizer(checkpoint.folder, n_vocab, generation.ends)
        levels = self._levels(planned)
        self._undo.callback(levels.close)
        server = attach(model, planned, levels, cpu_experts=self._settings.cpu_experts)
        levels.pool.grow()
        served = ServedModel(model, planned.source, levels, server)
        folder = self._settings.profile_dir
        served.warm_up(Profile(folder, planned.source.catalog) if folder else None, progress)
        return TorchEngine(served, tokenizer, planned.plan, generation.sampling)

    def _levels(self, planned: Planned) -> Levels:
        if self._device is None:
            return one_level(planned.source, planned.counts, self._settings)
        counts = planned.counts, planned.behind
        return two_levels(planned.source, counts, self._settings, self._device)

    def _plan(self, model: PreTrainedModel, stripped: Stripped) -> None:
        """Decide where the memory goes, before any weight is read. Raises BudgetError."""
        source = find_experts(self._checkpoint, model, stripped)
        self._undo.callback(source.close)
        if not source.catalog.layers:
            raise UnsupportedModelError(
                f"{source.catalog.architecture} has no routed experts: this engine is for those "
                "that have. Run a GGUF of it instead"
            )
        self._planned = plan_model(model, (source, stripped), self._settings, self._device)
