"""Shapes of published models, for simulations: what a trace is scaled to."""

from __future__ import annotations

from dataclasses import dataclass

from localmoe.errors import SettingsError


@dataclass(frozen=True)
class Shape:
    """A model at Q4_K_M, as llama.cpp quantizes it: computed from its configuration."""

    name: str
    n_layers: int
    """MoE layers only."""
    n_experts: int
    n_experts_used: int
    routed_nbytes: float
    """All routed experts together."""
    resident_nbytes: float

    @property
    def expert_nbytes(self) -> int:
        """Mean length of an expert."""
        return int(self.routed_nbytes / (self.n_layers * self.n_experts))


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("trinity-nano", 54, 128, 8, 3.28e9, 0.47e9),
        Shape("trinity-mini", 30, 128, 8, 14.6e9, 1.26e9),
        Shape("trinity-large", 54, 256, 4, 235.1e9, 4.53e9),
        Shape("deepseek-v3", 58, 256, 8, 394.0e9, 10.5e9),
        Shape("kimi-k2", 60, 384, 8, 612.9e9, 7.64e9),
        Shape("qwen3-30b-a3b", 48, 128, 8, 17.6e9, 1.0e9),
        Shape("qwen3-235b-a22b", 94, 128, 8, 137.3e9, 4.86e9),
        Shape("qwen3-coder-480b", 62, 160, 8, 282.8e9, 7.29e9),
        Shape("qwen3-next-80b", 48, 512, 10, 46.8e9, 1.67e9),
        Shape("glm-4.5-air", 45, 128, 8, 66.0e9, 4.42e9),
        Shape("glm-4.6", 89, 160, 8, 202.9e9, 10.1e9),
        Shape("gpt-oss-20b", 24, 32, 4, 14.3e9, 1.46e9),
        Shape("gpt-oss-120b", 36, 128, 4, 86.0e9, 1.84e9),
        Shape("mistral-large-3", 58, 128, 4, 394.0e9, 11.8e9),
        Shape("olmoe-1b-7b", 16, 64, 8, 3.90e9, 0.31e9),
    )
}


def shape_named(name: str) -> Shape:
    """Return a shape. Raises SettingsError."""
    if name not in SHAPES:
        raise SettingsError(f"there is no shape of {name}: there are {', '.join(SHAPES)}")
    return SHAPES[name]
