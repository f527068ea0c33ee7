"""Routers as llama.cpp's graph computes them: where their numbers lie, and their product anew.

Only one form is recognised: a product of `ffn_gate_inp` with a hidden state that was RMS-normed and
multiplied with a weight per dimension, then a softmax, a sigmoid or nothing, and a choice by that,
perhaps with a bias added. What is anything else has no `Routing`: nothing is predicted there.
"""

from __future__ import annotations

import ctypes as C
from dataclasses import dataclass

import numpy as np

from localmoe.backends.llama.bindings import TYPE_F32, Tensor, op_number
from localmoe.backends.llama.kernels import Kernels
from localmoe.prediction.router import Activation, Floats, Router

_NONE, _MUL, _ADD = op_number("NONE"), op_number("MUL"), op_number("ADD")
_MUL_MAT, _RMS_NORM = op_number("MUL_MAT"), op_number("RMS_NORM")
_SOFT_MAX, _UNARY = op_number("SOFT_MAX"), op_number("UNARY")
_ARGSORT, _VIEWS = op_number("ARGSORT"), (op_number("RESHAPE"), op_number("VIEW"))
_SIGMOID = 7  # GGML_UNARY_OP_SIGMOID
_COMPUTE = 16  # GGML_TENSOR_FLAG_COMPUTE
_ROUTER_NAME = b".ffn_gate_inp.weight"
_FARTHEST = 4
"""Nodes between the routing weights and the router's product, at most."""


@dataclass(frozen=True)
class Routing:
    """One token's routing in one layer; the arrays are llama.cpp's, until its graph goes on."""

    matrix: Tensor
    """The router's weights [D, E], of any type."""
    router: Router
    state: Floats
    """The normed hidden state, [D]."""
    probabilities: Floats
    """What the router made of it, [E]."""


class Routers:
    """Finds the routing of each layer, and computes products with its router. One per engine."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self._found: dict[int, Routing] = {}
        self._arrays: dict[tuple[int, int], Floats] = {}
        self._products: dict[int, _Product] = {}

    def read(self, node: int, layer: int) -> Routing | None:
        """Follow the graph back from where the weights of one token's experts were gathered.

        Returns None for a form that is not recognised.
        """
        known = self._found.get(layer)
        if known is None:
            known = self._read_form(node)
            if known is not None:
                self._found[layer] = known
            return known
        # The form stays what it was, only the places change from graph to graph.
        probabilities = _source(Tensor.from_address(node), 0, _VIEWS)
        product = _product_below(probabilities)
        if product is None or product.src[0] != C.addressof(known.matrix):
            return None
        state = Tensor.from_address(product.src[1])
        return Routing(known.matrix, known.router, self._floats(state), self._floats(probabilities))

    def product(self, layer: int, state: Floats) -> Floats:
        """Multiply a layer's router matrix with a state, float32 [D] -> [E]."""
        product = self._products.get(layer)
        if product is None:
            product = self._products[layer] = _Product(self._kernels, self._found[layer].matrix)
        return product.run(state)

    def _read_form(self, node: int) -> Routing | None:
        gather = Tensor.from_address(node)
        probabilities, order = (_source(gather, i, _VIEWS) for i in (0, 1))
        product, activation = _product_below(probabilities), _activation(probabilities)
        if product is None or activation is None or order.op != _ARGSORT:
            return None
        matrix, state = _source(product, 0), _source(product, 1)
        norm = _weights_of_norm(state)
        chosen_by = _source(order, 0)
        bias = _added(chosen_by, probabilities)
        if norm is None or _ROUTER_NAME not in matrix.name or product.ne[1] != 1:
            return None
        if bias is None and not _leads_to(probabilities, chosen_by):
            return None
        router = Router(
            self._floats(norm), activation, self._floats(bias) if bias is not None else None
        )
        return Routing(matrix, router, self._floats(state), self._floats(probabilities))

    def _floats(self, tensor: Tensor) -> Floats:
        """Return the float32 numbers of a tensor that lie in a row, without a copy."""
        count = tensor.ne[0] * tensor.ne[1] * tensor.ne[2]
        key = tensor.data, count
        array = self._arrays.get(key)
        if array is None:
            memory = (C.c_float * count).from_address(tensor.data)
            array = self._arrays[key] = np.frombuffer(memory, np.float32)
        return array


def _source(tensor: Tensor, index: int, through: tuple[int, ...] = ()) -> Tensor:
    """Return a tensor's source; those that only look at another one are passed through."""
    source = Tensor.from_address(tensor.src[index])
    while source.op in through:
        source = Tensor.from_address(source.src[0])
    return source


def _product_below(probabilities: Tensor) -> Tensor | None:
    """Return the router's product, which biases and an activation may follow."""
    found = probabilities
    for _ in range(_FARTHEST):
        if found.op == _MUL_MAT:
            return found
        if found.op not in (_SOFT_MAX, _UNARY, _ADD):
            return None
        found = Tensor.from_address(found.src[0])
    return None


def _activation(probabilities: Tensor) -> Activation | None:
    if probabilities.op == _SOFT_MAX:
        return None if probabilities.src[1] else "softmax"
    if probabilities.op == _UNARY:
        return "sigmoid" if probabilities.op_params[0] == _SIGMOID else None
    return "none"


def _weights_of_norm(state: Tensor) -> Tensor | None:
    """Return the weights [D] of an RMS norm; None if the state is anything else."""
    if state.op != _MUL or state.type != TYPE_F32 or _source(state, 0).op != _RMS_NORM:
        return None
    weights = _source(state, 1)
    return weights if weights.op == _NONE and weights.type == TYPE_F32 else None


def _added(chosen_by: Tensor, probabilities: Tensor) -> Tensor | None:
    """Return the bias that is added to the probabilities for the choice alone."""
    if chosen_by.op != _ADD or chosen_by.src[0] != C.addressof(probabilities):
        return None
    bias = _source(chosen_by, 1)
    return bias if bias.op == _NONE and bias.type == TYPE_F32 else None


def _leads_to(probabilities: Tensor, chosen_by: Tensor) -> bool:
    """Whether the choice is by the probabilities, or by what they grow with."""
    found = probabilities
    for _ in range(_FARTHEST):
        if C.addressof(found) == C.addressof(chosen_by):
            return True
        if found.op not in (_SOFT_MAX, _UNARY):
            return False
        found = Tensor.from_address(found.src[0])
    return False


class _Product:
    """A graph of one node: a router's matrix times one state."""

    def __init__(self, kernels: Kernels, matrix: Tensor) -> None:
        width, count = matrix.ne[0], matrix.ne[1]
        self._kernels = kernels
        self._state, self._result = np.empty(width, np.float32), np.empty(count, np.float32)
        self._row, self._node = _row(self._state), _row(self._result)
        self._node.op, self._node.flags = _MUL_MAT, _COMPUTE
        self._node.src[0], self._node.src[1] = C.addressof(matrix), C.addressof(self._row)
        self._node.name = b"predicted " + matrix.name[:40]
        self._graph = kernels.graph([self._node])

    def run(self, state: Floats) -> Floats:
        self._state[:] = state
        self._kernels.compute(self._graph, self._node)
        return self._result.copy()


def _row(numbers: Floats) -> Tensor:
    tensor = Tensor(type=TYPE_F32, data=numbers.ctypes.data)
    tensor.ne[:] = [len(numbers), 1, 1, 1]
    tensor.nb[:] = [4, *(3 * [4 * len(numbers)])]
    return tensor
