"""Work areas for decoding: a few rows at a time, in memory that stays in a core's cache."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator

import torch

# Areas of 6 bytes per value, all together, fit a second-level cache of 2 MiB, and the calls' fixed
# costs are small beside the work. A device with a memory of its own wants fewer, larger calls.
CPU_VALUES, DEVICE_VALUES = 1 << 18, 1 << 22


class _Areas(threading.local):
    def __init__(self) -> None:
        self.by_dtype: dict[torch.dtype, torch.Tensor] = {}


_areas = _Areas()


def row_blocks(rows: int, columns: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """Yield the first row and the row after the last of blocks that fit the work areas."""
    values = CPU_VALUES if device.type == "cpu" else DEVICE_VALUES
    step = max(1, values // max(1, columns))
    for first in range(0, rows, step):
        yield first, min(rows, first + step)


def area(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return an uninitialised tensor; on a CPU the thread's next call with this type reuses it.

    Other devices have allocators that know their streams, so there it is simply a new tensor.
    """
    # A tensor made in inference mode could not be written outside of it.
    with torch.inference_mode(False):
        if device.type != "cpu":
            return torch.empty(shape, dtype=dtype, device=device)
        count = math.prod(shape)
        kept = _areas.by_dtype.get(dtype)
        if kept is None or kept.numel() < count:
            kept = _areas.by_dtype[dtype] = torch.empty(max(count, CPU_VALUES), dtype=dtype)
        return kept[:count].view(shape)
