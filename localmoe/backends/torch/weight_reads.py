"""Reads of the weights that stay in memory, when they are asked for."""

from __future__ import annotations

import os
import threading

import torch
from torch import Tensor

from localmoe.backends.torch.weight import Weight
from localmoe.errors import ExpertReadError
from localmoe.settings import Progress
from localmoe.weights.catalog import Extent

_STEP_NBYTES = 64 << 20


class WeightReads:
    """Reads resident weights to a device, or to host memory; several threads may ask.

    `total_nbytes` is what will be read, once that is known.
    """

    def __init__(self, device: torch.device | None, progress: Progress | None = None) -> None:
        self.device, self._progress = device, progress
        self.total_nbytes = 0
        self._done_nbytes = 0
        self._guard = threading.Lock()

    def read(self, weight: Weight) -> Tensor:
        """Read a weight, past what the page cache should keep. Raises ExpertReadError."""
        raw = torch.empty(weight.nbytes, dtype=torch.uint8)
        start = 0
        for stored in weight.stored:
            _read(stored.extent, raw[start : start + stored.extent.nbytes])
            start += stored.extent.nbytes
        self._tell(weight.nbytes)
        if self.device is not None:
            raw = raw.to(self.device)
        if weight.is_plain:
            return raw.view(weight.dtype).view(weight.shape)
        return weight.decoded(raw, weight.dtype)

    def _tell(self, nbytes: int) -> None:
        with self._guard:
            self._done_nbytes += nbytes
            if self._progress:
                total = max(self.total_nbytes, self._done_nbytes)
                self._progress("loading weights", self._done_nbytes, total)


def _read(extent: Extent, target: Tensor) -> None:
    # Buffered: a direct read would write around what it is asked for, and each is read but once.
    view = memoryview(target.numpy().data)
    try:
        descriptor = os.open(extent.path, os.O_RDONLY)
        try:
            done = 0
            while done < extent.nbytes:
                step = view[done : done + _STEP_NBYTES]
                got = os.preadv(descriptor, [step], extent.offset + done)
                if not got:
                    raise ExpertReadError(extent.path, extent.offset, extent.nbytes, None)
                done += got
            if hasattr(os, "posix_fadvise"):
                advice = os.POSIX_FADV_DONTNEED
                os.posix_fadvise(descriptor, extent.offset, extent.nbytes, advice)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ExpertReadError(extent.path, extent.offset, extent.nbytes, error) from error


class LazyWeight:
    """What transformers takes for a tensor of a checkpoint: read when it is looked into."""

    def __init__(self, weight: Weight, dtype_name: str, reads: WeightReads) -> None:
        self._weight, self._dtype_name, self._reads = weight, dtype_name, reads

    def __getitem__(self, _: object) -> Tensor:
        return self._reads.read(self._weight)

    def get_dtype(self) -> str:
        """Return the type's name as safetensors writes it."""
        return self._dtype_name

    def get_shape(self) -> list[int]:
        """Return the shape."""
        return list(self._weight.shape)
