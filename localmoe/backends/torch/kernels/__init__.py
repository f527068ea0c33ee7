"""Products with experts as they lie packed in their slots, in Triton: docs/kernels.md.

    kernel, reason = find_kernel(sources, place, device, is_transposed=...)
    out = kernel.multiply(memory, x, slots, rows)     # [P, rows], one launch for all pairs

Where there is no kernel, `reason` says why, and weights are decoded before they are used.
"""

from __future__ import annotations

from localmoe.backends.torch.kernels.choice import KernelChoice, find_kernel

__all__ = ["KernelChoice", "find_kernel"]
