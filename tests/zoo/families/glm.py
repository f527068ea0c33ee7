"""Zhipu's GLM."""

from __future__ import annotations

from zoo.model import ZooModel

MODELS: dict[str, ZooModel] = {}
