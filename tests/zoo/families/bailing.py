"""Ling and Ring (bailingmoe), and what is close to them."""

from __future__ import annotations

from zoo.model import ZooModel

MODELS: dict[str, ZooModel] = {}
