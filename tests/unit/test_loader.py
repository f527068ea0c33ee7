"""Which of a file's tensors get memory, and of which kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from localmoe.backends.llama import parameters
from localmoe.backends.llama.bindings import L
from localmoe.backends.llama.loader import load_model
from localmoe.backends.llama.source import open_source
from localmoe.errors import ModelFormatError


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


@pytest.mark.parametrize("dry", [False, True])
def test_large_tensors_are_not_left_to_be_mapped(
    monkeypatch: pytest.MonkeyPatch, dry: bool
) -> None:
    """By itself, llama.cpp maps tables above 4 GiB from the file: of that there is no data."""
    modes: list[int] = []

    def refuse(params: Any, *_: object) -> int:
        modes.append(params.lazy_mode)
        return 0

    monkeypatch.setattr(parameters, "load_files", refuse)
    with pytest.raises(ModelFormatError):
        parameters.open_model(["model.gguf"], dry=dry)
    assert modes == [0]
    assert L.llama_model_default_params().lazy_mode != 0
