"""Passes by themselves: products and biases of tensors made by hand, and what they refuse."""

from __future__ import annotations

import ctypes as C
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from localmoe.backends.llama.bindings import OP_ADD_ID, OP_MUL_MAT_ID, Tensor
from localmoe.backends.llama.kernels import Kernels
from localmoe.backends.llama.passes import Passes
from localmoe.errors import UnsupportedModelError

T, K, E = 24, 2, 6
INNER, WIDTH = 32, 16
F32, F16 = 0, 1
COMPUTE = 16  # GGML_TENSOR_FLAG_COMPUTE: nodes of a graph have it
RNG = np.random.default_rng(0)
EXPERTS = [int(e) for _ in range(T) for e in RNG.permutation(E)[:K]]
WEIGHTS = RNG.standard_normal((E, WIDTH, INNER), np.float32)
BIASES = RNG.standard_normal((E, WIDTH), np.float32)
SLOT_OF = {expert: (expert + 2) % E for expert in range(E)}
Array = npt.NDArray[Any]


@pytest.fixture
def passes() -> Iterator[Passes]:
    kernels = Kernels(1)
    yield Passes(kernels)
    kernels.close()
    kernels.close()


def tensor(array: Array, **fields: Any) -> Tensor:
    """Return a tensor over an array; axes in reverse order, as llama.cpp has them."""
    made = Tensor(type=F32, data=array.ctypes.data, **fields)
    shape, strides = array.shape[::-1], array.strides[::-1]
    missing = 4 - array.ndim
    made.ne[:] = [*shape, *[1] * missing]
    made.nb[:] = [*strides, *[array.nbytes] * missing]
    made.array = array  # it owns the memory
    return made


def node(op: int, sources: list[Tensor], out: Array) -> Tensor:
    made = tensor(out, op=op, name=b"node-7", flags=COMPUTE)
    made.src[: len(sources)] = [C.addressof(source) for source in sources]
    made.sources = sources
    return made


def in_slots(values: Array) -> Array:
    """Return what belongs to experts in the order of slots."""
    ordered = np.empty_like(values)
    for expert, slot in SLOT_OF.items():
        ordered[slot] = values[expert]
    return ordered


def groups(*sizes: int) -> list[Mapping[int, int]]:
    """Return passes over all experts in groups of these sizes."""
    experts = iter(range(E))
    return [{e: SLOT_OF[e] for _, e in zip(range(size), experts, strict=False)} for size in sizes]


@pytest.mark.parametrize("rows", [1, K], ids=["one row for a token", "one row for each expert"])
@pytest.mark.parametrize("sizes", [(6,), (1, 5), (2, 2, 2), (1,) * 6])
def test_a_product_is_that_of_each_row_with_its_expert(
    passes: Passes, sizes: tuple[int, ...], rows: int
) -> None:
    source = RNG.standard_normal((T, rows, INNER), np.float32)
    out = np.full((T, K, WIDTH), np.nan, np.float32)
    sources = [tensor(in_slots(WEIGHTS)), tensor(source)]
    product = node(OP_MUL_MAT_ID, sources, out)
    passes.run(C.addressof(product), EXPERTS, groups(*sizes))
    assert passes.seconds > 0
    experts = np.array(EXPERTS).reshape(T, K)
    wanted = np.einsum("tkwi,tki->tkw", WEIGHTS[experts], np.broadcast_to(source, (T, K, INNER)))
    np.testing.assert_allclose(out, wanted, rtol=1e-4, atol=1e-4)
    whole = np.empty_like(out)
    again = node(OP_MUL_MAT_ID, sources, whole)
    passes.run(C.addressof(again), EXPERTS, groups(E))
    assert out.tobytes() == whole.tobytes()


def test_biases_may_be_added_in_place(passes: Passes) -> None:
    values = RNG.standard_normal((T, K, WIDTH), np.float32)
    wanted = values + BIASES[np.array(EXPERTS).reshape(T, K)]
    addition = node(OP_ADD_ID, [tensor(values), tensor(in_slots(BIASES))], values)
    passes.run(C.addressof(addition), EXPERTS, groups(2, 2, 2))
    assert values.tobytes() == wanted.tobytes()


def test_rows_with_gaps_between_tokens(passes: Passes) -> None:
    wide = RNG.standard_normal((T, 3, INNER), np.float32)
    slots = tensor(in_slots(WEIGHTS))
    results = []
    for source in (wide[:, :1], np.ascontiguousarray(wide[:, :1])):
        out = np.zeros((T, K, WIDTH), np.float32)
        product = node(OP_MUL_MAT_ID, [slots, tensor(source)], out)
        passes.run(C.addressof(product), EXPERTS, groups(3, 3))
        results.append(out.tobytes())
    assert results[0] == results[1]


def refused(passes: Passes, sources: list[Tensor], out: Array, reason: str) -> None:
    product = node(OP_MUL_MAT_ID, sources, out)
    with pytest.raises(UnsupportedModelError, match=rf"{reason}.*more --memory"):
        passes.run(C.addressof(product), EXPERTS, groups(E))


def test_what_is_not_made_of_float32_rows_is_refused(passes: Passes) -> None:
    source, out = np.ones((T, 1, INNER), np.float32), np.ones((T, K, WIDTH), np.float32)
    halves, columns = tensor(source, name=b"activations"), tensor(source, name=b"activations")
    halves.type = F16
    columns.nb[0] = 8
    for wrong in (halves, columns):
        refused(passes, [tensor(WEIGHTS), wrong], out, "^activations is not made of float32 rows")


def test_results_that_do_not_lie_in_a_row_are_refused(passes: Passes) -> None:
    source, wide = np.ones((T, 1, INNER), np.float32), np.ones((T, K + 1, WIDTH), np.float32)
    refused(passes, [tensor(WEIGHTS), tensor(source)], wide[:, :K], "^node-7 has results")
