"""What Metal says of this machine; where there is no Metal, what takes its place."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

_NO_LIMIT_NBYTES = 1 << 46


def has_metal() -> bool:
    """Whether MLX computes on a GPU of Apple's."""
    return bool(mx.metal.is_available())


def largest_buffer_nbytes() -> int:
    """Return how long an array may be."""
    return int(_info()["max_buffer_length"]) if has_metal() else _NO_LIMIT_NBYTES


def working_set_nbytes() -> int | None:
    """Return how much memory Metal may use without harm to others; None where there is no Metal."""
    return int(_info()["max_recommended_working_set_size"]) if has_metal() else None


def keep_resident(nbytes: int) -> None:
    """Have the system keep so much of MLX's memory where it is, never more than it recommends.

    What MLX has freed, and keeps for later, is bounded with it.
    """
    most = working_set_nbytes()
    if most is not None:
        mx.set_wired_limit(min(nbytes, most))


def keep_freed(nbytes: int) -> None:
    """Have MLX keep no more than this of what it has freed, where it would keep all of it."""
    if has_metal():
        mx.set_cache_limit(nbytes)


def multiplies_floats() -> bool:
    """Whether experts that are not quantized may be of other types than float32."""
    return bool(mx.default_device() == mx.Device(mx.gpu))


def _info() -> Any:
    return mx.device_info()
