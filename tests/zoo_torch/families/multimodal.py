"""Types that also take pictures: a text model inside, and a part that sees, not run here."""

from __future__ import annotations

from zoo_torch.shape import Shape

TYPES: dict[str, Shape] = {}
