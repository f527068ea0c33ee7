"""Which of a file's tensors get memory, and of which kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from localmoe.backends.llama.bindings import L
from localmoe.backends.llama.loader import load_model
from localmoe.backends.llama.source import open_source


def test_only_experts_of_layers_in_use_wait_for_slots(zoo_model: Callable[[str], Path]) -> None:
    """llama.cpp creates hy_v3's layer behind the last one, although it is not asked to."""
    L.llama_backend_init()
    source = open_source(zoo_model("hy_v3"), None)
    try:
        model = load_model(source, stream=True)
        waiting = set(model.experts)
        model.close()
    finally:
        source.close()
    assert any("_exps." in tensor.name for tensor in source.catalog.unused)
    assert waiting == {part.tensor for layer in source.catalog.layers for part in layer.parts}
