"""The kernel for a part of a layer's experts, if there is one."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from localmoe.backends.torch.kernels.layout import SLOT_ALIGNMENT_NBYTES
from localmoe.backends.torch.kernels.recognition import Refusal, layout_of

if TYPE_CHECKING:
    from localmoe.backends.torch.expert_sources import ExpertSource
    from localmoe.backends.torch.kernels.packed import PackedKernel
    from localmoe.backends.torch.slot_weights import Place

OLDEST_MAJOR = 8
"""Of NVIDIA's GPUs, the first ones that round to BF16 by themselves."""


class KernelChoice(NamedTuple):
    """A kernel, or why there is none: then what is in the slots has to be decoded."""

    kernel: PackedKernel | None
    reason: str


def find_kernel(
    sources: Sequence[ExpertSource],
    place: Place,
    device: torch.device,
    *,
    is_transposed: bool = False,
) -> KernelChoice:
    """Return the kernel for a part that lies at `place` in memory of `device`.

    `sources`: of the matrix, and of the bias where there is one. `is_transposed` as the experts'
    module says it. Triton is imported here and nowhere before.
    """
    reason = device_reason(device)
    if not reason and (place.start | place.stride) % SLOT_ALIGNMENT_NBYTES:
        reason = f"slots are not at multiples of {SLOT_ALIGNMENT_NBYTES} bytes"
    if reason:
        return KernelChoice(None, reason)
    layout = layout_of(sources, is_transposed)
    if isinstance(layout, Refusal):
        return KernelChoice(None, layout.reason)
    from localmoe.backends.torch.kernels.packed import PackedKernel

    return KernelChoice(PackedKernel(layout, place), "")


def device_reason(device: torch.device) -> str:
    """Return why no kernel runs on a device; empty where they do."""
    if device.type != "cuda" and not _is_interpreting():
        return f"kernels are for CUDA devices, and this one is {device.type}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install 'localmoe[cuda]'"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major < OLDEST_MAJOR:
            return f"kernels need a GPU of capability {OLDEST_MAJOR}.0, and this is {major}.{minor}"
    return ""


def _is_interpreting() -> bool:
    """Say whether Triton was imported to interpret kernels, which it does on any device."""
    triton = sys.modules.get("triton")
    return triton is not None and bool(triton.knobs.runtime.interpret)
