"""DeepSeek-V3.2 and later: latent attention over chosen positions."""

from __future__ import annotations

from zoo.model import ZooModel

MODELS: dict[str, ZooModel] = {}
