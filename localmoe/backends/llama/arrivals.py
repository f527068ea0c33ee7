"""A product of one token with its experts, computed in the order in which they arrive.

The experts that are in memory are multiplied while the others are still being read. Each product of
one row with one expert is a node of its own, for llama.cpp's own kernel, and writes where the whole
product would have written it: so the bits are the same.
"""

from __future__ import annotations

import ctypes as C
from collections.abc import Iterable, Sequence

from localmoe.backends.llama.bindings import TYPE_F32, Tensor
from localmoe.backends.llama.kernels import Kernels
from localmoe.native.library import Products


class Arrivals:
    """Multiplies one token with some of its experts at a time."""

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels
        self._products: dict[tuple[int, int, bytes], _Products] = {}

    def can(self, node: int) -> bool:
        """Whether this product is one token's, of float32 rows."""
        whole = Tensor.from_address(node)
        if not whole.src[1]:
            return False
        rows = Tensor.from_address(whole.src[1])
        one_token = whole.ne[2] == rows.ne[2] == whole.ne[3] == rows.ne[3] == 1
        return bool(one_token and whole.type == rows.type == TYPE_F32)

    def run(self, node: int, slots: Sequence[int], groups: Iterable[Sequence[int]]) -> None:
        """Compute the product at this address, group by group.

        `slots` are those of the token's experts, [K]; each group lists which of them are there.
        """
        whole = Tensor.from_address(node)
        products = self._products_of(whole)
        matrices, rows = (Tensor.from_address(whole.src[i] or 0) for i in (0, 1))
        for group in groups:
            products.compute(matrices, rows, whole, [(p, slots[p]) for p in group])

    def prepare(self, node: int, n: int) -> Products:
        """Return the nodes of the product at this address, with a graph of the first n."""
        products = self._products_of(Tensor.from_address(node))
        products.graph(n)
        return products.addresses

    def _products_of(self, whole: Tensor) -> _Products:
        key = (whole.src[0] or 0, whole.ne[0], bytes(whole.op_params))
        products = self._products.get(key)
        if products is None:
            products = self._products[key] = _Products(self.kernels, whole)
        return products


class _Products:
    """Nodes that each multiply one row with one matrix of a weight tensor; one for each place."""

    def __init__(self, kernels: Kernels, whole: Tensor) -> None:
        self._kernels = kernels
        matrices, rows, ids = (Tensor.from_address(whole.src[i] or 0) for i in (0, 1, 2))
        used = ids.ne[0]
        self._number = C.c_int32(0)  # the only matrix of a node is its first
        self._first = Tensor()
        _describe(self._first, ids, 1, 1)
        self._first.data = C.addressof(self._number)
        self._matrices, self._rows, self._nodes = ((Tensor * used)() for _ in range(3))
        self._graphs = (C.c_void_p * (used + 1))()
        for matrix, row, node in zip(self._matrices, self._rows, self._nodes, strict=True):
            _describe(matrix, matrices, matrices.ne[0], matrices.ne[1])
            _describe(row, rows, rows.ne[0], 1)
            _describe(node, whole, whole.ne[0], 1)
            node.op, node.op_params, node.flags = whole.op, whole.op_params, whole.flags
            node.src[0], node.src[1] = C.addressof(matrix), C.addressof(row)
            node.src[2] = C.addressof(self._first)

    @property
    def addresses(self) -> Products:
        """Where all of these are, for compiled code; they live as long as this."""
        arrays = (self._matrices, self._rows, self._nodes, self._graphs)
        return Products(*map(C.addressof, arrays))

    def compute(
        self, matrices: Tensor, rows: Tensor, whole: Tensor, experts: list[tuple[int, int]]
    ) -> None:
        """Multiply for these experts, each (its place among the token's K, its slot)."""
        weights, stride = matrices.data, matrices.nb[2]
        # Gate and up take the same row for all experts, down takes the expert's own.
        source, source_stride = rows.data, rows.nb[1] if rows.ne[1] > 1 else 0
        target, target_stride = whole.data, whole.nb[1]
        for i, (place, slot) in enumerate(experts):
            self._matrices[i].data = weights + slot * stride
            self._rows[i].data = source + place * source_stride
            self._nodes[i].data = target + place * target_stride
        self._kernels.compute(self.graph(len(experts)), whole)

    def graph(self, n: int) -> int:
        """Return a graph of the first n nodes."""
        if not self._graphs[n]:
            self._graphs[n] = self._kernels.graph(self._nodes[:n])
        return int(self._graphs[n] or 0)


def _describe(tensor: Tensor, like: Tensor, width: int, rows: int) -> None:
    """Give a tensor the shape [width, rows, 1, 1], and type and row stride of another one."""
    tensor.type, tensor.name, tensor.buffer = like.type, like.name, like.buffer
    tensor.ne[:] = [width, rows, 1, 1]
    tensor.nb[:] = [like.nb[0], like.nb[1], like.nb[1] * rows, like.nb[1] * rows]
