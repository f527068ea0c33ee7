"""Models whose layers are partly recurrent: a state in place of a KV cache."""

from __future__ import annotations

from zoo.model import ZooModel

MODELS: dict[str, ZooModel] = {}
