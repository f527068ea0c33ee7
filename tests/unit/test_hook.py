"""The hook by itself: what it refuses, on graph nodes made by hand."""

from __future__ import annotations

import ctypes as C
from pathlib import Path

import numpy as np
import pytest

from localmoe.backends.llama.bindings import OP_GET_ROWS, OP_MUL_MAT_ID, OP_NONE, Tensor
from localmoe.backends.llama.callback import Callback
from localmoe.backends.llama.hook import PartOf
from localmoe.backends.llama.kernels import Kernels
from localmoe.errors import ModelFormatError, UnsupportedModelError
from localmoe.native.library import Library, library
from storage import CacheRig


class Graph:
    """Two layers' worth of nodes: a routing and a product of layer 0, on [T = 1, K = 2] ids."""

    def __init__(self, directory: Path, compiled: Library | None) -> None:
        self.rig = CacheRig(directory, (4, 2), 1, compiled)
        self.kernels = Kernels(1)
        self.weights = Tensor()
        self.numbers = np.array([5, 3], np.int32)
        self.ids = self.tensor(self.numbers)
        layers = {layer.layer: layer for layer in self.rig.experts.layers}
        parts = {C.addressof(self.weights): PartOf(0, 0)}
        self.hook = Callback(self.rig.cache, layers, parts, self.kernels, frozenset(), compiled)
        self.nodes: list[Tensor] = []

    def tensor(self, numbers: np.ndarray) -> Tensor:
        tensor = Tensor(data=numbers.ctypes.data)
        tensor.ne[:], tensor.nb[:] = [len(numbers), 1, 1, 1], [4, 4 * len(numbers), 0, 0]
        return tensor

    def route(self, name: bytes = b"ffn_moe_weights-0") -> None:
        node = Tensor(op=OP_GET_ROWS, name=name)
        node.src[1] = C.addressof(self.ids)
        self.compute(node)

    def product(self, ids: Tensor | None = None) -> None:
        node = Tensor(op=OP_MUL_MAT_ID)
        node.src[0] = C.addressof(self.weights)
        node.src[2] = C.addressof(ids or self.ids)
        self.compute(node)

    def compute(self, node: Tensor) -> None:
        """Ask about a node, and tell that it was computed, as the scheduler does."""
        self.nodes.append(node)  # the hook may write to it until `finish`
        if self.call(node, True):
            self.call(node, False)

    def call(self, node: Tensor, ask: bool) -> bool:
        function, user_data = self.hook.eval_callback
        return bool(function(C.addressof(node), ask, user_data))

    def close(self) -> None:
        self.kernels.close()
        self.rig.close()


@pytest.fixture(params=["Python", "compiled"])
def graph(request: pytest.FixtureRequest, tmp_path: Path):  # type: ignore[no-untyped-def]
    compiled = library() if request.param == "compiled" else None
    if request.param == "compiled" and compiled is None:
        pytest.skip("nothing is compiled here")
    graph = Graph(tmp_path, compiled)
    yield graph
    graph.close()


def test_ids_become_slots_and_products_may_use_them(graph: Graph) -> None:
    graph.route()
    assert all(0 <= slot < 4 for slot in graph.numbers)
    graph.product()
    graph.hook.finish()


def test_a_product_before_any_routing_is_refused(graph: Graph) -> None:
    graph.product()
    with pytest.raises(UnsupportedModelError, match="routing was not seen"):
        graph.hook.finish()


def test_a_product_of_another_layer_is_refused(graph: Graph) -> None:
    graph.route(b"ffn_moe_weights-1")
    graph.product()
    with pytest.raises(UnsupportedModelError, match="layer 0 multiplies"):
        graph.hook.finish()


def test_a_product_with_other_ids_is_refused(graph: Graph) -> None:
    """They would still be expert numbers, and be taken for slots."""
    graph.route()
    other = np.array([5, 3], np.int32)
    graph.product(graph.tensor(other))
    with pytest.raises(UnsupportedModelError, match="routing was not seen"):
        graph.hook.finish()


def test_expert_numbers_that_do_not_exist_are_refused(graph: Graph) -> None:
    graph.numbers[1] = 8
    graph.route()
    with pytest.raises(ModelFormatError, match="outside of 0 to 7"):
        graph.hook.finish()


def test_after_an_error_every_node_is_refused_until_it_is_raised(graph: Graph) -> None:
    graph.product()
    node = Tensor(op=OP_MUL_MAT_ID)
    assert graph.call(node, True)
    assert not graph.call(node, False)
    with pytest.raises(UnsupportedModelError):
        graph.hook.finish()
    assert not graph.call(node, True)


def test_what_is_refused_is_not_computed_either(graph: Graph) -> None:
    """A product with expert numbers for slot numbers would write where it must not."""
    graph.product()
    (product,) = graph.nodes
    assert product.op == OP_NONE
    other = Tensor(op=OP_GET_ROWS)
    graph.compute(other)  # of the next part of the graph
    assert (product.op, other.op) == (OP_MUL_MAT_ID, OP_NONE)
    with pytest.raises(UnsupportedModelError):
        graph.hook.finish()
    assert (product.op, other.op) == (OP_MUL_MAT_ID, OP_GET_ROWS)


def test_layers_that_no_graph_routes_are_refused_by_number(graph: Graph) -> None:
    graph.route()
    graph.route(b"ffn_moe_weights-7")  # resident experts
    with pytest.raises(UnsupportedModelError, match="layer 1, 2 were never chosen from"):
        graph.hook.check_all_routed()
    for number in (1, 2):
        graph.numbers[:] = 0, 1
        graph.route(b"ffn_moe_weights-%d" % number)
    graph.hook.check_all_routed()
    graph.hook.finish()
    graph.hook.check_all_routed()
