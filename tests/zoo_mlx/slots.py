"""What a test wants of an engine's slots."""

from __future__ import annotations

from localmoe.backends.mlx.engine import MlxEngine


def fill_slots(engine: MlxEngine) -> None:
    """Read every expert; there have to be slots for all."""
    for layer in engine.catalog.layers:
        with engine.cache.acquire(layer.layer, range(layer.n_experts)) as lease:
            for part in range(len(layer.parts)):
                lease.wait(part)
    assert engine.cache.has_all()
