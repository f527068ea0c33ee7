"""Loads a model so that its routing is seen: only where experts are streamed is anybody told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from localmoe.backends.llama.engine import LlamaEngine
from localmoe.backends.llama.load import load
from localmoe.errors import SettingsError
from localmoe.settings import Progress, Settings

_STREAMED_SHARE = 0.75


@contextmanager
def streamed_engine(
    model: str, settings: Settings, progress: Progress | None = None
) -> Iterator[LlamaEngine]:
    """Yield an engine with fewer slots than experts, whatever the budget. LocalMoeError."""
    engine = load(model, settings, progress)
    try:
        catalog = engine.catalog
        if not catalog.layers:
            raise SettingsError("a dense model has no experts to follow: give one that has")
        if engine.plan.streams:
            yield engine
            return
        engine.close()
        least = max(layer.n_experts for layer in catalog.layers)
        slots = max(least, int(_STREAMED_SHARE * catalog.n_experts_total))
        engine = load(model, replace(settings, slots=slots), progress)
        yield engine
    finally:
        engine.close()
