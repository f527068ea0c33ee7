"""From misses to tokens per second, on a device that is only described."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from localmoe.lab.devices import Device
from localmoe.lab.shapes import Shape
from localmoe.prediction.trace import Trace

MEGABYTE = 1e6


@dataclass(frozen=True)
class Machine:
    """A device, and what a token of a model takes without any miss."""

    device: Device
    expert_nbytes: float
    n_experts_used: int
    n_layers: int
    resident_nbytes: float

    @classmethod
    def of(cls, device: Device, trace: Trace, shape: Shape | None) -> Machine:
        """Take lengths from the shape, or else the trace, which knows of no resident weights."""
        nbytes = shape.expert_nbytes if shape else trace.mean_expert_nbytes or MEGABYTE
        resident = shape.resident_nbytes if shape else 0.0
        return cls(device, nbytes, trace.n_experts_used, len(trace.layers), resident)

    @property
    def layer_compute_seconds(self) -> float:
        """Going through a layer's experts of one token, and its share of the resident weights."""
        nbytes = self.n_experts_used * self.expert_nbytes + self.resident_nbytes / self.n_layers
        return nbytes / self.device.memory_bytes_per_second

    def tokens_per_second(self, misses: npt.NDArray[np.int64]) -> float:
        """Return the speed with so many misses, [T, L]: the longer of reading and computing counts.

        What is there is computed while the rest is read, in each layer for itself.
        """
        most = int(misses.max(initial=0))
        reading = [self.device.read_seconds(n, self.expert_nbytes) for n in range(most + 1)]
        seconds = np.maximum(np.array(reading), self.layer_compute_seconds)[misses]
        return float(len(misses) / seconds.sum())

    def assumptions(self, trace: Trace, shape: Shape | None) -> list[str]:
        """Say in sentences what the speed rests on."""
        device = self.device
        said = [
            f"{device.name}: {device.bytes_per_second / 1e9:.2g} GB/s, "
            f"{device.latency_seconds * 1e6:.0f} microseconds for {device.depth} reads at once, "
            f"and weights in memory gone through at {device.memory_bytes_per_second / 1e9:.0f} "
            "GB/s. These are figures of the class, measured on no machine.",
            "Each layer takes the longer of reading its misses and computing; nothing is read on a "
            "guess, and nothing else costs time: real engines are slower.",
            f"An expert is {self.expert_nbytes / MEGABYTE:.3g} MB, "
            f"the resident weights {self.resident_nbytes / 1e9:.3g} GB.",
        ]
        if shape:
            said.append(
                f"Routing is that of {trace.model or 'the trace'}, stretched to {shape.n_layers} "
                f"layers of {shape.n_experts} experts, {shape.n_experts_used} used, at Q4_K_M. "
                "Kept is how much likelier than by chance recent experts are used again, nothing "
                f"else. {shape.name} itself may be routed otherwise."
            )
        elif not trace.moe_layers:
            said.append("The trace does not say how long an expert is: 1 MB was taken.")
        return said
