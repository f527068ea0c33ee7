"""Llama-4, and what goes under Llama's name: Mixtral, Granite, OLMoE, Phi."""

from __future__ import annotations

from zoo.model import ZooModel

MODELS: dict[str, ZooModel] = {}
