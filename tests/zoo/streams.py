"""Several streams between the layers: each sub-layer reads one mix of them and writes another."""

from __future__ import annotations

from zoo.draft import Draft

STREAMS = 4
_MIXES = (2 + STREAMS) * STREAMS


def stream_keys(model: Draft) -> None:
    """Add the keys of the streams."""
    model.key(
        hyper_connection__count=STREAMS,
        hyper_connection__sinkhorn_iterations=5,
        hyper_connection__epsilon=1e-6,
    )


def mix_streams(model: Draft, name: str) -> None:
    """Add what mixes the streams before and after a sub-layer."""
    width = model.shape.embedding * STREAMS
    model.noise(name + "_fn.weight", _MIXES, width, std=width**-0.5)
    model.noise(name + "_base.weight", _MIXES, std=0.5)
    model.noise(name + "_scale.weight", 3, std=0.1, mean=1.0)
