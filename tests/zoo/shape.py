"""The sizes of a tiny model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ExpertTypes = tuple[str, str, str]
"""ggml types of gate, up and down."""


@dataclass(frozen=True)
class Shape:
    """What a model looks like; the defaults give 16 experts of three 8 KiB parts per MoE layer.

    Names follow the GGUF keys. Not every architecture uses every field.
    """

    layers: int = 3
    embedding: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 32
    feed_forward: int = 96
    """Width of dense layers."""
    dense_layers: int = 0
    """Leading layers that have no experts."""
    experts: int = 16
    experts_used: int = 2
    expert_feed_forward: int = 32
    shared_experts: int = 0
    expert_types: tuple[ExpertTypes, ...] = (("F32", "F32", "F32"),)
    """Per MoE layer, repeated from the start when there are more layers than entries."""
    resident_type: str = "F32"
    """ggml type of all matrices that are not routed experts."""
    fused_gate_up: bool = False
    """One tensor for gate and up, with the gate's type; where the architecture accepts it."""
    expert_scales: bool = False
    """One float per expert and projection, as NVFP4 checkpoints have."""
    window: int = 8
    """Tokens that a sliding-window layer sees."""
    context: int = 512
    """Tokens the model claims to be trained for."""
    alignment: int = 32
    """Bytes to which the file aligns tensors."""
    shards: int = 1
    seed: int = 0
    metadata: Mapping[str, int | float | bool | str] = field(default_factory=dict)
    """Further GGUF keys, written as they are."""

    @property
    def shared_feed_forward(self) -> int:
        """Width of all shared experts together."""
        return self.shared_experts * self.expert_feed_forward
