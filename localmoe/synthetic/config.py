"""What decides the shape of a published model's GGUF file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

SOFTMAX, SIGMOID, SOFTMAX_OF_CHOSEN = 1, 2, 3
"""GGUF's numbers for what a router scores with."""


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention: the cache has one compressed key for all heads."""

    q_rank: int
    kv_rank: int
    plain: int
    """The part of a head that is not rotated."""
    rope: int
    value: int
    indexer: tuple[int, int, int] | None = None
    """Heads, size and chosen positions of an indexer, where attention sees some positions only."""


@dataclass(frozen=True)
class DeltaNet:
    """Recurrent layers in all but every fourth layer."""

    key_heads: int
    value_heads: int
    state: int = 128
    joined_gates: bool = False
    """Whether one matrix gives both gates."""


@dataclass(frozen=True)
class Config:
    """A model's sizes, named as in GGUF keys. Layers that predict further tokens are left out."""

    name: str
    """As a person would write it."""
    architecture: str
    layers: int
    embedding: int
    heads: int
    kv_heads: int
    head_size: int
    experts: int
    experts_used: int
    expert_feed_forward: int
    vocabulary: int
    context_tokens: int
    dense_layers: int = 0
    """Leading layers without experts."""
    moe_step: int = 1
    """Every so many layers one has experts; the others are dense."""
    feed_forward: int = 0
    """Width of dense layers."""
    shared_feed_forward: int = 0
    """Width of all shared experts together; 0: there are none."""
    shared_gate: bool = False
    """Whether each token scales the shared expert."""
    gating: int = SOFTMAX
    normalised: bool = True
    route_scale: float = 1.0
    selection_bias: bool = False
    groups: tuple[int, int] = (1, 1)
    """Groups of experts, and how many of them a token keeps."""
    qk_norm: Literal["", "head", "all"] = ""
    """Norms of queries and keys: per head, or over all heads."""
    biases: Literal["", "qkv", "all"] = ""
    """What has biases: queries, keys and values; or the router and experts as well."""
    window: int = 0
    rope_base: float = 10000.0
    rope_dimensions: int = 0
    """Rotated dimensions of a head; 0: all."""
    yarn: tuple[float, int] | None = None
    """Factor and original context of YaRN."""
    latent: Latent | None = None
    delta: DeltaNet | None = None

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Numbers of the layers that have experts."""
        return tuple(
            layer
            for layer in range(self.dense_layers, self.layers)
            if (layer + 1) % self.moe_step == 0
        )

    def with_layers(self, layers: int) -> Config:
        """Return the same model with so many layers, the dense ones among them kept."""
        return replace(self, layers=layers)
