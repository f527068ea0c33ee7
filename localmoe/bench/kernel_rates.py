"""How fast weights of a type are multiplied with: small models of one type, through the engine."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localmoe.backends.llama.planned import plan_model
from localmoe.bench.request import DecodeRequest
from localmoe.bench.spread import is_doubtful
from localmoe.errors import LocalMoeError
from localmoe.planning.figures import Kernel
from localmoe.planning.token_work import TokenWork
from localmoe.settings import Progress, Settings
from localmoe.synthetic.config import Config
from localmoe.synthetic.writer import write_uniform

TYPES = ("Q4_K", "Q6_K", "Q8_0", "Q5_K", "Q3_K", "Q2_K", "IQ2_XXS", "IQ4_XS", "MXFP4", "BF16")
STAGE = "multiplying"
LAYER = "layers"
"""What failed where no type did."""
_BUDGET_BYTES = 1 << 40
Run = Callable[[DecodeRequest], dict[str, Any] | None]
"""Measures in a process of its own; None: it was killed."""


@dataclass(frozen=True)
class KernelRequest:
    """How large the models are, and how long each is measured."""

    experts: int = 48
    tokens: int = 32
    prompt_tokens: int = 256
    types: tuple[str, ...] = TYPES
    threads: int | None = None


@dataclass(frozen=True)
class Kernels:
    """What was found, and of which types nothing was, and why."""

    kernels: Mapping[str, Kernel]
    layer_seconds: float | None
    """None: not measured, and it is in the times of the kernels."""
    failed: Mapping[str, str]
    doubtful: tuple[str, ...] = ()
    """Types, or LAYER, whose samples lie far apart or cannot be told from noise."""


def measure_kernels(
    folder: Path, request: KernelRequest, run: Run, progress: Progress | None = None
) -> Kernels:
    """Write, run and remove a model for each type.

    A type whose process dies, whose engine refuses or for which there is no room is told of, and
    the others go on.
    """
    kernels: dict[str, Kernel] = {}
    failed: dict[str, str] = {}
    doubtful: list[str] = []
    layer_seconds = None
    try:
        thin = _Measured.take(folder, _thin(), "Q8_0", request, run)
        layer_seconds = thin.token_seconds / thin.work.layers
        if thin.is_doubtful:
            doubtful.append(LAYER)
    except (LocalMoeError, OSError) as error:
        failed[LAYER] = _reason(error)
    for done, type_name in enumerate(request.types):
        if progress:
            progress(f"{STAGE} {type_name}", done, len(request.types))
        try:
            measured = _Measured.take(folder, _wide(request.experts), type_name, request, run)
            kernels[type_name] = measured.kernel(layer_seconds or 0.0)
            if measured.is_doubtful or measured.is_drowned_by(layer_seconds or 0.0):
                doubtful.append(type_name)
        except (LocalMoeError, OSError) as error:
            failed[type_name] = _reason(error)
    return Kernels(kernels, layer_seconds, failed, tuple(doubtful))


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


@dataclass(frozen=True)
class _Measured:
    work: TokenWork
    token_seconds: float
    prefill_seconds: float
    """Of one token of the prompt."""
    is_doubtful: bool

    @classmethod
    def take(
        cls, folder: Path, config: Config, type_name: str, request: KernelRequest, run: Run
    ) -> _Measured:
        path = folder / f"{type_name}.gguf"
        settings = Settings(
            memory_bytes=_BUDGET_BYTES,
            context_tokens=request.prompt_tokens + request.tokens + 16,
            threads=request.threads,
        )
        try:
            write_uniform(path, config, type_name)
            work = plan_model(path, settings, _BUDGET_BYTES).work
            decode = DecodeRequest(
                *(str(path), settings, request.tokens, request.prompt_tokens), device_seconds=0.0
            )
            report = run(decode)
        finally:
            path.unlink(missing_ok=True)
        if report is None:
            raise LocalMoeError("the process was killed: the memory may not suffice")
        extra = report["extra"]
        samples = extra["token_seconds"]
        prefill_seconds = 1 / extra["prefill_tokens_per_second"]
        return cls(work, statistics.median(samples), prefill_seconds, is_doubtful(samples))

    def is_drowned_by(self, layer_seconds: float) -> bool:
        """Whether layers of a thin model would take most of a token: one of the two is noise."""
        return self.work.layers * layer_seconds > self.token_seconds / 2

    def kernel(self, layer_seconds: float) -> Kernel:
        """Take away what layers cost beside; the routers of other types count as this one."""
        nbytes = self.work.resident_nbytes + self.work.routed_nbytes
        # Half of a token at least is its products: anything else is noise of the thin model.
        beside = min(self.work.layers * layer_seconds, self.token_seconds / 2)
        operations = sum(self.work.operations(kind) for kind in self.work.types)
        return Kernel(nbytes / (self.token_seconds - beside), operations / self.prefill_seconds)


def _wide(experts: int) -> Config:
    """Return a model whose tokens spend their time on experts, larger than caches."""
    return Config(
        name="wide",
        architecture="qwen3moe",
        layers=2,
        embedding=2048,
        heads=4,
        kv_heads=4,
        head_size=128,
        experts=experts,
        experts_used=min(8, experts),
        expert_feed_forward=1024,
        feed_forward=1024,
        vocabulary=256,
        context_tokens=4096,
        qk_norm="head",
    )


def _thin() -> Config:
    """Return a model of many layers with next to nothing in them."""
    return Config(
        name="thin",
        architecture="qwen3moe",
        layers=48,
        embedding=256,
        heads=4,
        kv_heads=4,
        head_size=64,
        experts=8,
        experts_used=2,
        expert_feed_forward=256,
        feed_forward=256,
        vocabulary=256,
        context_tokens=4096,
        qk_norm="head",
    )
