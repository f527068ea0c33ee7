"""All model types of which there is a tiny checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from zoo_torch.families import grouped, latent, multimodal, recurrent
from zoo_torch.shape import Shape

TINY: Mapping[str, Shape] = MappingProxyType(
    dict(sorted({**grouped.TYPES, **latent.TYPES, **recurrent.TYPES, **multimodal.TYPES}.items()))
)
"""By model type of transformers, sorted."""
