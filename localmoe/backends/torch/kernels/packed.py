"""One part of a layer's experts, multiplied where it lies in its slots."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from localmoe.backends.torch.formats import DTYPES
from localmoe.backends.torch.kernels import products
from localmoe.backends.torch.kernels.layout import SLOT_ALIGNMENT_NBYTES, Layout

if TYPE_CHECKING:
    from localmoe.backends.torch.slot_weights import Place

_WARPS = 4


class PackedKernel:
    """Multiplies packed matrices in slots by vectors, all pairs in one launch.

    `out_rows` is how many values a product has, `columns` how many a vector.
    """

    def __init__(self, layout: Layout, place: Place) -> None:
        self._layout, self._place = layout, place
        self._dtype = DTYPES[layout.dtype]
        self._launch: Any = products.multiply_plain if layout.is_plain else products.multiply_coded
        self.out_rows, self.columns = layout.out_rows, layout.columns

    def multiply(self, memory: Tensor, x: Tensor, slots: Tensor, rows: Tensor) -> Tensor:
        """Return the matrix of slot slots[p] times row rows[p] of x for each pair p, [P, rows].

        `memory` is that of all slots, uint8; x is [T, columns] in the compute type; `slots` and
        `rows` are int32 [P], at most 65535. All are on one device. What `slots` and `rows` say is
        not looked at here: that would wait for the device. The caller sees to it that there are
        such slots and rows. Raises ValueError for tensors of another type or shape.
        """
        self._check(memory, x, slots, rows)
        out = torch.empty((len(slots), self.out_rows), dtype=self._dtype, device=x.device)
        if not len(slots):
            return out
        layout, place = self._layout, self._place
        grid = (layout.row_tiles * layout.pieces, len(slots))
        with torch.cuda.device(memory.device) if memory.is_cuda else nullcontext():
            self._launch[grid](
                memory[place.start :],
                place.stride,
                (_aligned(slots), _aligned(rows)),
                _aligned(x),
                out,
                layout,
                num_warps=_WARPS,
            )
        return out

    def _check(self, memory: Tensor, x: Tensor, slots: Tensor, rows: Tensor) -> None:
        place = self._place
        end = place.start + (place.slots - 1) * place.stride + self._layout.nbytes
        if memory.dtype != torch.uint8 or memory.dim() != 1 or not memory.is_contiguous():
            raise ValueError(f"slots are bytes one after the other: {memory.dtype} given")
        if len(memory) < end or memory.data_ptr() % SLOT_ALIGNMENT_NBYTES:
            raise ValueError(
                f"slots are {end} bytes from a multiple of {SLOT_ALIGNMENT_NBYTES} on: "
                f"{len(memory)} at {memory.data_ptr():#x} given"
            )
        if x.dtype != self._dtype or x.dim() != 2 or x.shape[1] != self.columns:
            raise ValueError(
                f"vectors [T, {self.columns}] in {self._dtype} wanted, {tuple(x.shape)} in "
                f"{x.dtype} given"
            )
        if slots.dtype != torch.int32 or slots.dtype != rows.dtype:
            raise ValueError(f"int32 slots and rows wanted, {slots.dtype}, {rows.dtype} given")
        if slots.dim() != 1 or slots.shape != rows.shape:
            raise ValueError(
                f"a slot and a row for each pair wanted, {tuple(slots.shape)} and "
                f"{tuple(rows.shape)} given"
            )


def _aligned(tensor: Tensor) -> Tensor:
    """Return it where a kernel is compiled for: for another place it would be compiled anew."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % SLOT_ALIGNMENT_NBYTES == 0 else tensor.clone()
