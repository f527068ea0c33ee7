"""The options that commands share, and the places that the environment names."""

from __future__ import annotations

import os
import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from localmoe.errors import SettingsError
from localmoe.planning.sizes import parse_size
from localmoe.settings import Settings


class KvTypeName(StrEnum):
    """What `settings.KvType` names."""

    F16 = "f16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"


class EngineKind(StrEnum):
    """What `settings.EngineName` names."""

    LLAMA = "llama"
    TORCH = "torch"


class DeviceKind(StrEnum):
    """What `settings.DeviceName` names."""

    CPU = "cpu"
    CUDA = "cuda"


class PolicyKind(StrEnum):
    """What `settings.PolicyName` names."""

    NEXT_USE = "next-use"
    LRU = "lru"
    LFU = "lfu"
    LRFU = "lrfu"
    SLRU = "slru"
    TWO_QUEUE = "two-queue"
    LEAST_STALE = "least-stale"
    STATIC = "static"


_TOKENS = re.compile(r"(\d{1,9})([km]?)", re.ASCII)
_THOUSANDS = {"": 1, "k": 1 << 10, "m": 1 << 20}
_LEAST_CONTEXT, _LONGEST_CONTEXT = 16, 1 << 24


def cache_dir() -> Path:
    """Return the folder for files that can be made again: $LOCALMOE_CACHE, or the system's."""
    own = os.environ.get("LOCALMOE_CACHE")
    if own:
        return Path(own).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME")
    if xdg and Path(xdg).is_absolute():
        return Path(xdg) / "localmoe"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "localmoe"
    return Path.home() / ".cache" / "localmoe"


def profile_dir() -> Path:
    """Return the folder for what is remembered of runs, in the state folder."""
    return state_dir() / "profiles"


def figures_dir() -> Path:
    """Return the folder for what `bench measure` found, in the state folder."""
    return state_dir() / "figures"


def state_dir() -> Path:
    """Return the folder for what is to be kept: $LOCALMOE_STATE, or the system's."""
    own = os.environ.get("LOCALMOE_STATE")
    if own:
        return Path(own).expanduser()
    xdg = os.environ.get("XDG_STATE_HOME")
    if xdg and Path(xdg).is_absolute():
        return Path(xdg) / "localmoe"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "localmoe"
    return Path.home() / ".local" / "state" / "localmoe"


def size_option(text: str) -> int:
    """Return bytes; what is no size is a wrong use of the command."""
    try:
        return parse_size(text)
    except SettingsError as error:
        raise typer.BadParameter(str(error)) from error


def _tokens_option(text: str | int) -> int:
    """Return a number of tokens; k and m count in 1024s."""
    match = _TOKENS.fullmatch(str(text).strip().lower())
    count = int(match.group(1)) * _THOUSANDS[match.group(2)] if match else 0
    if not _LEAST_CONTEXT <= count <= _LONGEST_CONTEXT:
        raise typer.BadParameter(
            f"{text!r} is no number of tokens from {_LEAST_CONTEXT} to {_LONGEST_CONTEXT}, such "
            "as 4096 or 32k"
        )
    return count


Memory = Annotated[
    int | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        parser=size_option,
        envvar="LOCALMOE_MEMORY",
        help="Memory for everything together, such as 3GiB or 3072MB. "
        "Default: what is available, less a margin.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        min=1,
        max=512,
        envvar="LOCALMOE_THREADS",
        help="Threads that compute. Default: all cores that this process may use.",
    ),
]
Context = Annotated[
    int,
    typer.Option(
        "--context",
        metavar="N",
        parser=_tokens_option,
        help="Tokens of the conversation that fit at once, such as 4096 or 32k.",
    ),
]
KvTypes = Annotated[
    KvTypeName,
    typer.Option(
        "--kv-type",
        help="How the conversation is kept in memory. q8_0 takes about half of f16's room, q4_0 a "
        "quarter; both are lossy: the model says slightly other things.",
    ),
]
Engines = Annotated[
    EngineKind | None,
    typer.Option(
        "--engine",
        help="Who computes. Default: llama (llama.cpp) for GGUF files, torch (with transformers) "
        "for safetensors checkpoints.",
        show_default=False,
    ),
]
Devices = Annotated[
    DeviceKind | None,
    typer.Option(
        "--device",
        help="Where the torch engine computes. Default: the GPU, where torch can use one.",
        show_default=False,
    ),
]
Vram = Annotated[
    int | None,
    typer.Option(
        "--vram",
        metavar="SIZE",
        parser=size_option,
        envvar="LOCALMOE_VRAM",
        help="Memory of the GPU for everything together; --memory is then for what stands behind "
        "it. Default: what is free, less a margin.",
    ),
]
CpuExperts = Annotated[
    bool,
    typer.Option(
        "--cpu-experts",
        help="Experts that the GPU's memory lacks may be multiplied by the processor, where that "
        "is faster than to copy them. Lossy: the processor rounds otherwise, so what is said then "
        "depends on which experts were there.",
    ),
]
Policies = Annotated[
    PolicyKind,
    typer.Option(
        "--policy",
        help="Which expert gives way to another one: the one that is expected to be used last, as "
        "learned in this run (next-use), the one that was used longest ago (lru), or one of those "
        "that docs/cache-lab.md describes. The answer is the same.",
    ),
]
Mirrors = Annotated[
    list[str] | None,
    typer.Option(
        "--mirror",
        metavar="PATH",
        help="A copy of MODEL on another drive (a file, or a folder with all shards): experts are "
        "read from both at once. May be given several times.",
    ),
]
ExpertsUsed = Annotated[
    int | None,
    typer.Option(
        "--experts-used",
        metavar="N",
        min=1,
        help="Experts per token, instead of the model's own number. Lossy: the model says other "
        "things than it was trained to; for experiments only.",
    ),
]


def engine_settings(  # noqa: PLR0913 (these are options of the command line)
    memory: int | None,
    context: int,
    kv_type: KvTypeName,
    threads: int | None,
    engine: EngineKind | None,
    device: DeviceKind | None,
    vram: int | None,
    cpu_experts: bool,
    policy: PolicyKind,
    experts_used: int | None,
    mirror: list[str] | None,
) -> Settings:
    """Return what these options ask of an engine. Raises SettingsError."""
    return Settings(
        memory_bytes=memory,
        context_tokens=context,
        kv_type=kv_type.value,
        threads=threads,
        engine=engine.value if engine else None,
        device=device.value if device else None,
        vram_bytes=vram,
        cpu_experts=cpu_experts,
        policy=policy.value,
        experts_used=experts_used,
        mirrors=tuple(mirror or ()),
    )
