"""The outcome of planning: where the memory budget goes."""

from __future__ import annotations

from dataclasses import dataclass

from localmoe.settings import KvType


@dataclass(frozen=True)
class MemoryPlan:
    """Where the budget goes, decided before anything is allocated. Bytes."""

    budget_bytes: int
    base_bytes: int
    """The interpreter, its libraries and a margin."""
    resident_bytes: int
    kv_bytes: int
    compute_bytes: int
    slot_bytes: int
    slots: int
    """Experts that the slots hold; equals `experts` when everything fits, 0 in a dense model."""
    experts: int
    """Routed experts of all layers; 0 in a dense model."""
    context_tokens: int
    prefill_chunk_tokens: int
    kv_type: KvType = "f16"
    mark_bytes: int = 0
    """What the marks of a recurrent model may take together; see `Engine.mark`."""
    lent_bytes: int = 0
    """How much of `slot_bytes` is computed in, instead, while a long prompt is read."""
    behind: MemoryPlan | None = None
    """How host memory is split where this is the memory of a device: the slots behind its own."""

    @property
    def streams(self) -> bool:
        """Whether experts are read on demand: False when all of them fit."""
        return self.slots < self.experts

    @property
    def total_bytes(self) -> int:
        """All parts together; at most `budget_bytes` when the budget decided them."""
        return (
            self.base_bytes
            + self.resident_bytes
            + self.kv_bytes
            + self.compute_bytes
            + self.slot_bytes
            + self.mark_bytes
        )
