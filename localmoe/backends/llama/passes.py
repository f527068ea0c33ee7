"""A product with experts, computed in passes: each takes the rows of the experts that are there.

A pass gathers the rows of some experts, lets llama.cpp's own kernel multiply them, and puts the
results where the whole product would have put them. All rows of an expert go through one pass, in
their order, because kernels choose how to compute by the number of rows of an expert: so the bits
are those of the whole product.
"""

from __future__ import annotations

import ctypes as C
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from localmoe.backends.llama.bindings import (
    OP_MUL_MAT_ID,
    TYPE_F32,
    TYPE_I32,
    Tensor,
)
from localmoe.backends.llama.kernels import Kernels
from localmoe.errors import UnsupportedModelError

Floats = npt.NDArray[np.float32]


class Passes:
    """Computes products with experts, and additions of their biases, some rows at a time."""

    def __init__(self, kernels: Kernels) -> None:
        self.seconds = 0.0
        """Time spent on moving rows: what it costs that experts did not fit at once."""
        self._scratch: dict[str, npt.NDArray[Any]] = {}
        self._kernels, self._node = kernels, Tensor()
        self._graph = kernels.graph([self._node])

    def run(self, node: int, experts: Sequence[int], passes: Iterable[Mapping[int, int]]) -> None:
        """Compute a product or an addition of biases, at this address, pass by pass.

        `experts` are those of all rows, [T * K]; each pass maps the experts that are there to
        their slots.
        """
        whole = Tensor.from_address(node)
        rows_at = 1 if whole.op == OP_MUL_MAT_ID else 0
        source, target = _rows(whole.src[rows_at] or 0), _rows(node)
        tokens, used, width = target.shape
        # Where the rows of all K experts of a token are one and the same, there is one.
        row_of = np.arange(tokens * used)
        source_of = row_of // used * source.shape[1] + row_of % used % source.shape[1]
        source = source.reshape(-1, source.shape[2])
        target = target.reshape(-1, width)
        if not np.may_share_memory(target, _rows(node)):
            raise _unsupported(whole, "has results that do not lie in a row")
        by_expert = _RowsByExpert(experts)
        for slots in passes:
            for batch in by_expert.batches(slots, tokens):
                began = time.perf_counter()
                groups = [by_expert.rows(expert) for expert in batch]
                rows = np.concatenate(groups)
                ids = np.repeat([slots[expert] for expert in batch], [len(g) for g in groups])
                gathered = self._buffer("source", len(rows), source.shape[1])
                np.take(source, source_of[rows], axis=0, out=gathered, mode="clip")
                results = self._buffer("target", len(rows), width)
                computing = time.perf_counter()
                self._compute(whole, rows_at, gathered, ids.astype(np.int32), results)
                computed = time.perf_counter()
                target[rows] = results
                self.seconds += time.perf_counter() - computed + computing - began

    def _compute(
        self, whole: Tensor, rows_at: int, gathered: Floats, ids: npt.NDArray[np.int32], out: Floats
    ) -> None:
        """Have llama.cpp compute these rows as if they were tokens with one expert each."""
        rows, numbers = Tensor(), Tensor()
        _describe(rows, TYPE_F32, gathered)
        _describe(numbers, TYPE_I32, ids.reshape(-1, 1))
        node = self._node
        _describe(node, TYPE_F32, out)
        node.op, node.op_params, node.flags = whole.op, whole.op_params, whole.flags
        node.src[:3] = whole.src[:3]
        node.src[rows_at], node.src[2] = C.addressof(rows), C.addressof(numbers)
        self._kernels.compute(self._graph, whole)

    def _buffer(self, name: str, rows: int, width: int) -> Floats:
        size = rows * width
        if name not in self._scratch or self._scratch[name].size < size:
            self._scratch.pop(name, None)  # first: the plan counts no second one
            self._scratch[name] = np.empty(size, np.float32)
        return self._scratch[name][:size].reshape(rows, width)


class _RowsByExpert:
    """The rows of each expert, in their order."""

    def __init__(self, experts: Sequence[int]) -> None:
        numbers = np.array(experts)
        self._order = np.argsort(numbers, kind="stable")
        found, first = np.unique(numbers[self._order], return_index=True)
        ends = [*first[1:], len(numbers)]
        self._bounds = {int(e): (a, b) for e, a, b in zip(found, first, ends, strict=True)}

    def rows(self, expert: int) -> npt.NDArray[np.intp]:
        start, stop = self._bounds[expert]
        return self._order[start:stop]

    def batches(self, experts: Iterable[int], limit: int) -> Iterator[list[int]]:
        """Cut experts into lists of at most `limit` rows, or one expert."""
        batch: list[int] = []
        total = 0
        for expert in experts:
            start, stop = self._bounds[expert]
            if batch and total + stop - start > limit:
                yield batch
                batch, total = [], 0
            batch.append(expert)
            total += stop - start
        if batch:
            yield batch


def _rows(address: int) -> Floats:
    """Return the float32 numbers of a tensor [width, K, T] as an array [T, K, width]."""
    t = Tensor.from_address(address)
    if t.type != TYPE_F32 or t.ne[3] != 1 or t.nb[0] != 4:
        raise _unsupported(t, "is not made of float32 rows")
    shape, strides = (t.ne[2], t.ne[1], t.ne[0]), (t.nb[2], t.nb[1], t.nb[0])
    span = 4 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    memory = (C.c_char * span).from_address(t.data)
    return np.ndarray(shape, np.float32, memory, strides=strides)


def _unsupported(tensor: Tensor, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{tensor.name.decode(errors='replace')} {reason}: this architecture cannot compute more "
        "experts in a step than there are slots. Give it more --memory."
    )


def _describe(tensor: Tensor, kind: int, rows: npt.NDArray[Any]) -> None:
    """Let a tensor [width, 1, rows], or [1, rows] for numbers, stand for an array [rows, width]."""
    count, width = rows.shape
    inner = [width, 1, count] if kind == TYPE_F32 else [width, count, 1]
    tensor.type, tensor.data = kind, rows.ctypes.data
    tensor.ne[:], stride = [*inner, 1], 4
    for axis, n in enumerate(tensor.ne):
        tensor.nb[axis] = stride
        stride *= n
