"""Shapes of published models, for simulations: what a trace is scaled to."""

from __future__ import annotations

from dataclasses import dataclass

from localmoe.synthetic.config import Config
from localmoe.synthetic.models import config_named
from localmoe.synthetic.writer import model_nbytes

_QUANTIZATION = "Q4_K_M"


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


def shape_of(config: Config, name: str) -> Shape:
    """Return the shape of a model's configuration."""
    resident, routed = model_nbytes(config, _QUANTIZATION)
    used, layers = config.experts_used, len(config.moe_layers)
    return Shape(name, layers, config.experts, used, float(routed), float(resident))


def shape_named(name: str) -> Shape:
    """Return the shape of a known model. Raises SettingsError, which names near ones."""
    return shape_of(config_named(name), name)
