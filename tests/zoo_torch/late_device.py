"""The processor as a device with memory of its own, whose copies come when they are waited for."""

from __future__ import annotations

import torch
from torch import Tensor

from localmoe.backends.torch.device import TorchDevice
from localmoe.cache.link import Link
from storage.late_device import LateDevice


class LateTorchDevice(TorchDevice):
    """What is used too early, or copied over too soon, shows in the logits."""

    def __init__(self, seed: int = 0, wait_seconds: float = 0.0) -> None:
        super().__init__(torch.device("cpu"))
        self._seed, self._wait_seconds = seed, wait_seconds

    def link(self, host: Tensor, memory: Tensor) -> Link:
        """See TorchDevice."""
        views = memoryview(host.numpy().data), memoryview(memory.numpy().data)
        return LateDevice(
            *views, seed=self._seed, computes_at_once=True, wait_seconds=self._wait_seconds
        )
