"""Small models that a machine is measured with: written, run in a process of their own, removed."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from localmoe.backends.llama.planned import plan_model
from localmoe.bench.request import DecodeRequest
from localmoe.bench.spread import is_doubtful
from localmoe.errors import LocalMoeError
from localmoe.planning.token_work import TokenWork
from localmoe.settings import Settings
from localmoe.synthetic.config import Config
from localmoe.synthetic.writer import write_uniform

_BUDGET_BYTES = 1 << 40
_KV_NBYTES = 4
"""Of a number of a key and one of a value, in 16 bits."""
Run = Callable[[DecodeRequest], dict[str, Any] | None]
"""Measures in a process of its own; None: it was killed."""


@dataclass(frozen=True)
class SmallModel:
    """What is measured: a model's shape, the type of its matrices, and for how long."""

    config: Config
    type_name: str
    prompt_tokens: int
    tokens: int
    threads: int | None = None
    slots: int | None = None
    """With fewer slots than experts these are streamed."""

    @property
    def attention_nbytes(self) -> float:
        """Bytes of keys and values that a token's query heads go through, each for itself."""
        config, positions = self.config, self.prompt_tokens + self.tokens / 2
        return positions * config.layers * config.heads * config.head_size * _KV_NBYTES

    def measure(self, folder: Path, run: Run) -> Measured:
        """Write it into a folder, run and remove it. Raises LocalMoeError, OSError."""
        path = folder / f"{self.type_name}.gguf"
        context = self.prompt_tokens + self.tokens + 16
        settings = Settings(
            memory_bytes=_BUDGET_BYTES,
            slots=self.slots,
            context_tokens=context,
            threads=self.threads,
        )
        try:
            write_uniform(path, self.config, self.type_name)
            work = plan_model(path, settings, _BUDGET_BYTES).work
            sizes = self.tokens, self.prompt_tokens
            report = run(DecodeRequest(str(path), settings, *sizes, device_seconds=0.0))
        finally:
            path.unlink(missing_ok=True)
        if report is None:
            raise LocalMoeError("the process was killed: the memory may not suffice")
        extra = report["extra"]
        samples = extra["token_seconds"]
        prefill_seconds = 1 / extra["prefill_tokens_per_second"]
        return Measured(
            *(self, work, statistics.median(samples), prefill_seconds, is_doubtful(samples)),
            *(report["hit_rate"], report["stall_seconds_per_token"]),
        )


@dataclass(frozen=True)
class Measured:
    """What a small model took."""

    model: SmallModel
    work: TokenWork
    token_seconds: float
    prefill_seconds: float
    """Of one token of the prompt."""
    is_doubtful: bool
    hit_rate: float
    stall_seconds: float
    """Of a token, waiting for experts."""

    @property
    def nbytes(self) -> int:
        """Bytes of weights that a token passes."""
        return self.work.resident_nbytes + self.work.routed_nbytes

    @property
    def layers_that_miss(self) -> float:
        """How many layers of a token have an expert missing, misses being independent."""
        return self.work.moe_layers * (1 - self.hit_rate**self.work.experts_used)

    @property
    def rows(self) -> int:
        """Rows of matrices that a token is multiplied with."""
        return self.work.resident_rows + self.work.routed_rows


def wide(experts: int) -> Config:
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


def thin() -> Config:
    """Return a model of many layers with next to nothing in them."""
    return replace(
        wide(16),
        name="thin",
        layers=48,
        embedding=256,
        head_size=64,
        expert_feed_forward=64,
        feed_forward=64,
    )


def bare() -> Config:
    """Return a model of layers with even less in them: few rows, one expert."""
    return replace(thin(), name="bare", embedding=64, heads=1, kv_heads=1, experts_used=1)


def narrow() -> Config:
    """Return a model of experts with many short rows."""
    return replace(wide(16), name="narrow", layers=8, experts_used=16, expert_feed_forward=32)


def attentive() -> Config:
    """Return a model that spends its time on what came before."""
    return replace(thin(), name="attentive", layers=8, heads=16, head_size=128)
