"""How fast weights in memory can be gone through: no product of one token is faster."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_ARRAY_NBYTES = 256 << 20
"""Of each core: larger than what caches hold."""
_SAMPLES = 5


def measure_memory(cores: int, array_nbytes: int = _ARRAY_NBYTES) -> list[float]:
    """Return samples of the bytes per second that so many cores read, each its own array."""
    arrays = [np.ones(array_nbytes // 4, np.float32) for _ in range(cores)]
    rates = []
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(np.max, arrays))
        for _ in range(_SAMPLES):
            began = time.perf_counter()
            list(pool.map(np.max, arrays))  # releases the interpreter while it runs
            rates.append(cores * array_nbytes / (time.perf_counter() - began))
    return rates
