"""What a memory plan is made for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from localmoe.cache.slots import SlotClass
from localmoe.settings import KvType
from localmoe.weights.catalog import Catalog


class ChunkFootprint(Protocol):
    """What an engine needs for one prefill chunk length."""

    @property
    def chunk_tokens(self) -> int: ...  # noqa: D102
    @property
    def kv_bytes(self) -> int: ...  # noqa: D102
    @property
    def compute_bytes(self) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class Request:
    """What a plan is made for. Bytes."""

    catalog: Catalog
    classes: tuple[SlotClass, ...]
    footprints: Sequence[ChunkFootprint]
    """Longest chunk first; the last is that of a single token."""
    base_bytes: int
    context_tokens: int
    kv_type: KvType = "f16"
    mark_bytes: int = 0
    threads: int = 1
    lends: bool = False
    """Whether slots may lend their memory to long steps."""
    option: str = "--memory"
    """What a user makes the budget larger with."""
    sparse: bool = False
    """Whether pages take memory when they are touched, and not when a neighbour is."""
