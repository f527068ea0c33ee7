"""A device with memory of its own: torch's streams and events behind `cache.link.Link`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from localmoe.cache.link import Copies, Link, Run
from localmoe.errors import EngineError


class TorchDevice:
    """Where a model is computed, if its memory is not the processor's.

    Everything goes through the module that torch has for a kind of device (torch.cuda), so that
    the same code runs with torch.cpu, whose streams do nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.streams: Any = torch.get_device_module(device)

    def free_bytes(self) -> int:
        """Return how much memory nobody uses. Raises EngineError where the device cannot tell."""
        look = getattr(self.streams, "mem_get_info", None)
        if look is None:
            raise EngineError(f"{self.device} does not tell how much memory it has: give --vram")
        free, _ = look(self.device)
        return int(free)

    def allocate(self, nbytes: int) -> Tensor:
        """Return device memory, uint8. Raises torch.OutOfMemoryError."""
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def link(self, host: Tensor, memory: Tensor) -> Link:
        """Return the way from host memory to memory of this device, both uint8."""
        return StreamLink(self, host, memory)

    def pin(self, host: Tensor) -> Pinned | None:
        """Keep host memory where it is, so that the device itself can copy out of it.

        None where that is no matter. Raises EngineError where the system refuses.
        """
        runtime = getattr(self.streams, "cudart", None)
        return Pinned(runtime(), host) if runtime else None


class Pinned:
    """Host memory that stays in place until this is closed."""

    def __init__(self, runtime: Any, host: Tensor) -> None:
        self._runtime, self._address = runtime, host.data_ptr()
        code = int(runtime.cudaHostRegister(self._address, host.nbytes, 0))
        if code:
            raise EngineError(
                f"{host.nbytes} bytes of memory could not be pinned for the GPU (CUDA error "
                f"{code}): use a smaller --memory, or lift the limit on locked memory (ulimit -l)"
            )

    def close(self) -> None:
        """Let it go. May be called twice."""
        if self._address:
            self._runtime.cudaHostUnregister(self._address)
            self._address = 0


class StreamCopies:
    """Implements `cache.link.Copies`."""

    def __init__(self, event: Any) -> None:
        self.event = event

    def done(self) -> bool:
        """See Copies."""
        return bool(self.event.query())

    def wait(self) -> None:
        """See Copies."""
        self.event.synchronize()


class StreamLink:
    """Copies on two streams beside the one that computes. Implements `cache.link.Link`."""

    def __init__(self, device: TorchDevice, host: Tensor, memory: Tensor) -> None:
        self._device, self._host, self._memory = device, host, memory
        self._streams = device.streams
        self._up = self._streams.Stream(device.device)
        self._down = self._streams.Stream(device.device)

    def upload(self, run: Run) -> None:
        """See Link."""
        host, device = self._places(run)
        with self._streams.stream(self._up):
            device.copy_(host, non_blocking=True)

    def uploads(self) -> StreamCopies:
        """See Link."""
        return StreamCopies(self._mark(self._up))

    def download(self, runs: Sequence[Run]) -> StreamCopies:
        """See Link."""
        self._down.wait_event(self._mark(self._up))
        with self._streams.stream(self._down):
            for run in runs:
                host, device = self._places(run)
                host.copy_(device, non_blocking=True)
        return StreamCopies(self._mark(self._down))

    def hold_uploads(self, copies: Copies) -> None:
        """See Link."""
        assert isinstance(copies, StreamCopies)
        self._up.wait_event(copies.event)

    def order(self, copies: Copies) -> None:
        """See Link."""
        assert isinstance(copies, StreamCopies)
        self._computing().wait_event(copies.event)

    def used(self) -> None:
        """See Link."""
        self._up.wait_event(self._mark(self._computing()))

    def _computing(self) -> Any:
        return self._streams.current_stream(self._device.device)

    def _mark(self, stream: Any) -> Any:
        event = self._streams.Event()
        event.record(stream)
        return event

    def _places(self, run: Run) -> tuple[Tensor, Tensor]:
        host = self._host[run.host : run.host + run.nbytes]
        return host, self._memory[run.device : run.device + run.nbytes]
