"""From misses to tokens per second, on a device that is only described."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from localmoe.lab.devices import Device
from localmoe.lab.shapes import Shape
from localmoe.planning.sizes import format_nbytes
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

    token_seconds: float | None = None
    """What a token takes with all experts in memory, where that was measured."""

    @classmethod
    def of(
        cls, device: Device, trace: Trace, shape: Shape | None, token_seconds: float | None = None
    ) -> Machine:
        """Take lengths from the shape, or else the trace, which knows of no resident weights."""
        nbytes = shape.expert_nbytes if shape else trace.mean_expert_nbytes or MEGABYTE
        resident = shape.resident_nbytes if shape else 0.0
        used, layers = trace.n_experts_used, len(trace.layers)
        return cls(device, nbytes, used, layers, resident, token_seconds)

    @property
    def before_seconds(self) -> float:
        """Of a layer, what is computed before its routing is known: attention, most of all."""
        if self.token_seconds is not None:
            return self.token_seconds / self.n_layers / 2
        return self.resident_nbytes / self.n_layers / self.device.memory_bytes_per_second

    @property
    def experts_seconds(self) -> float:
        """Of a layer, what its experts take to compute."""
        if self.token_seconds is not None:
            return self.token_seconds / self.n_layers / 2
        nbytes = self.n_experts_used * self.expert_nbytes
        return nbytes / self.device.memory_bytes_per_second

    def tokens_per_second(self, misses: npt.NDArray[np.int64]) -> float:
        """Return the speed with so many misses, [T, L].

        Experts that are there are computed while the others are read: the longer of both counts.
        """
        most = int(misses.max(initial=0))
        reading = [self.device.read_seconds(n, self.expert_nbytes) for n in range(most + 1)]
        seconds = self.before_seconds + np.maximum(np.array(reading), self.experts_seconds)[misses]
        return float(len(misses) / seconds.sum())

    def assumptions(self, trace: Trace, shape: Shape | None) -> list[str]:
        """Say in sentences what the speed rests on."""
        device = self.device
        said = [
            f"{device.name}: {device.bytes_per_second / 1e9:.2g} GB/s, "
            f"{device.latency_seconds * 1e6:.0f} microseconds for {device.depth} reads at once, "
            f"and weights in memory gone through at {device.memory_bytes_per_second / 1e9:.0f} "
            "GB/s. These are figures of the class, measured on no machine.",
            self._said_of_computing(),
            "Reading begins when a layer is routed; from then on the longer of reading and "
            "computing counts. Nothing else costs time: real engines are slower.",
            f"An expert is {format_nbytes(int(self.expert_nbytes))}; the resident weights are "
            + (format_nbytes(int(self.resident_nbytes)) if self.resident_nbytes else "not known")
            + ".",
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

    def _said_of_computing(self) -> str:
        if self.token_seconds is not None:
            return (
                f"A token takes {1e3 * self.token_seconds:.3g} ms with all experts in memory, as "
                "was said; half of each layer's share passes before its routing is known."
            )
        return (
            "Computing takes as long as going through the weights: the resident ones before a "
            "layer is routed, its experts afterwards."
        )
