"""How to run a model. Frozen: what a run does is decided by its inputs alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from localmoe.errors import SettingsError

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total) while something takes long; `total` may grow."""
KvType = Literal["f16", "q8_0", "q4_0"]
"""How keys and values of the context are kept: 2, 1.0625 or 0.5625 bytes per number."""
EngineName = Literal["llama", "torch", "mlx"]
"""Who computes: llama.cpp for GGUF files; torch with transformers, or MLX with mlx-lm, for
safetensors checkpoints."""
DeviceName = Literal["cpu", "cuda"]
"""Where the torch engine computes."""
PolicyName = Literal["next-use", "lru", "lfu", "lrfu", "slru", "two-queue", "least-stale", "static"]
"""Which expert gives way to another one: docs/cache-lab.md says what each evicts."""


def available_threads() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Ranks:
    """This process among several that run one model together, each with some of its layers."""

    rank: int
    size: int
    address: str
    """HOST:PORT at which rank 0 listens for the others."""
    token: str = ""
    """Whoever says it is one of them."""
    names: tuple[str, ...] = ()
    """What their machines are called, by rank."""
    ended: Callable[[], str | None] | None = field(default=None, compare=False)
    """Tells why one of the others will never come; None: nothing is known against it."""
    on_lost: Callable[[], None] | None = field(default=None, compare=False)
    """Called by some thread of rank 0 as soon as one of the others is gone."""

    def name(self, rank: int) -> str:
        """Return what a rank is called in messages."""
        return f"rank {rank} ({self.names[rank]})" if rank < len(self.names) else f"rank {rank}"


@dataclass(frozen=True)
class Settings:
    """Options of `localmoe.load`.

    `memory_bytes` bounds the whole process (None: what is available to it, less a margin).
    `context_tokens` is cut to what the model was trained for. `slots` fixes the number of expert
    slots instead of deriving it from the budget; tests use it to force evictions.
    """

    memory_bytes: int | None = None
    context_tokens: int = 4096
    threads: int | None = None
    read_workers: int = 4
    mirrors: tuple[str, ...] = ()
    """Copies of the model on other drives: a file, or the folder that holds all of its files."""
    prefill_chunk_tokens: int | None = None
    slots: int | None = None
    kv_type: KvType = "f16"
    """Anything but f16 saves memory and rounds: the logits are others, streamed or not."""
    policy: PolicyName = "next-use"
    profile_dir: Path | None = None
    """Where it is kept which experts were used, so that the next run begins with those in memory.
    None: not kept."""
    compiled: bool = True
    """Whether the compiled callback serves single tokens, where it was built. Same bits, faster."""
    engine: EngineName | None = None
    """None: the one for the files that the model has, on this machine."""
    device: DeviceName | None = None
    """For the torch engine. None: the GPU, where torch can use one."""
    vram_bytes: int | None = None
    """How much of a GPU's memory may be used. None: what is free, less a margin."""
    cpu_experts: bool = False
    """Whether experts that a GPU's memory lacks may be multiplied by the processor, where that is
    faster than to copy them. Lossy: the processor rounds otherwise."""
    experts_used: int | None = None
    """Overrides the checkpoint's number of active experts. Lossy: for experiments only."""
    ranks: Ranks | None = None
    """The processes that run the model together; None: this one alone."""

    @property
    def n_threads(self) -> int:
        """Threads that compute: `threads`, or as many as there are cores for this process."""
        return self.threads or available_threads()

    def __post_init__(self) -> None:
        for name in (
            "memory_bytes",
            "vram_bytes",
            "threads",
            "prefill_chunk_tokens",
            "slots",
            "experts_used",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name} must be at least 1, not {value}")
        for name, kind in (
            ("kv_type", KvType),
            ("policy", PolicyName),
            ("engine", EngineName),
            ("device", DeviceName),
        ):
            value = getattr(self, name)
            may_be_open = name in ("engine", "device")
            if value not in get_args(kind) and not (may_be_open and value is None):
                raise SettingsError(
                    f"{name} must be one of {', '.join(get_args(kind))}, not {value!r}"
                )
        for name in ("context_tokens", "read_workers"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1, not {getattr(self, name)}")
