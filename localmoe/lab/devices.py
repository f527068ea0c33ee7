"""Devices that experts could be read from, as a simulation takes them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from localmoe.errors import SettingsError


@dataclass(frozen=True)
class Device:
    """A drive, and the memory of the machine that it is in. Round figures of their class."""

    name: str
    bytes_per_second: float
    latency_seconds: float
    depth: int
    """So many reads pass their latency together."""
    memory_bytes_per_second: float
    """How fast weights are gone through once: what decoding takes, where it computes little."""

    def read_seconds(self, n_experts: float, expert_nbytes: float) -> float:
        """Return how long reading so many experts takes, all of their three parts at once."""
        waves = math.ceil(3 * n_experts / self.depth)
        return waves * self.latency_seconds + n_experts * expert_nbytes / self.bytes_per_second


DEVICES = {
    device.name: device
    for device in (
        Device("sata-ssd", 0.53e9, 120e-6, 32, 40e9),
        Device("nvme-gen3", 3.2e9, 90e-6, 32, 40e9),
        Device("nvme-gen4", 6.5e9, 75e-6, 32, 60e9),
        Device("nvme-gen5", 12e9, 65e-6, 32, 80e9),
        Device("mac-internal", 5.5e9, 90e-6, 32, 200e9),
    )
}


def device_named(name: str) -> Device:
    """Return a device. Raises SettingsError."""
    if name not in DEVICES:
        raise SettingsError(f"there is no device {name}: there are {', '.join(DEVICES)}")
    return DEVICES[name]
