"""What happens at routing time: llama.cpp asks before each graph node, and tells after some.

When a layer's routing weights are known, its expert numbers are replaced by slot numbers and the
missing experts' reads start. Before a matrix product with experts is computed, the bytes of just
that matrix are waited for, so that products overlap with the reads of the matrices after them.

A step that routes to more experts of a layer than there are slots is no error: llama.cpp is told to
leave out that layer's products, and they are computed here, in passes.
"""

from __future__ import annotations

import ctypes as C
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple, TypeVar

from localmoe.backends.llama.arrivals import Arrivals
from localmoe.backends.llama.bindings import (
    DATA_OFFSET,
    NAME_OFFSET,
    OP_ADD_ID,
    OP_CPY,
    OP_GET_ROWS,
    OP_MUL_MAT_ID,
    OP_NONE,
    OP_OFFSET,
    POINTER_NBYTES,
    SRC_OFFSET,
    Tensor,
)
from localmoe.backends.llama.compiled import CompiledHook, Exchange
from localmoe.backends.llama.ids import Ids
from localmoe.backends.llama.kernels import Kernels
from localmoe.backends.llama.lending import buffer_of
from localmoe.backends.llama.next_layer import NextLayer
from localmoe.backends.llama.passes import Passes
from localmoe.cache.expert_cache import ExpertCache
from localmoe.cache.lease import Lease
from localmoe.cache.sweep import Sweep
from localmoe.errors import InterruptedDecodeError, UnsupportedModelError
from localmoe.weights.catalog import MoeLayer

_Group = TypeVar("_Group")
RoutingWatch = Callable[[int, int, Sequence[int]], None]
"""Gets the graph node that gathers the routing weights, the layer, and its experts, [T * K]."""
_ROUTED = b"ffn_moe_weights-"
_WATCHED = frozenset({OP_MUL_MAT_ID, OP_ADD_ID, OP_GET_ROWS})
_SRC0, _SRC1, _SRC2 = (SRC_OFFSET + i * POINTER_NBYTES for i in range(3))
WHAT_TO_DO = (
    "This architecture cannot be streamed with this version of llama.cpp; give it enough --memory "
    "to hold all experts."
)


class PartOf(NamedTuple):
    """Which part of which layer's experts a weight tensor holds."""

    layer: int
    part: int


class _LeftOut(NamedTuple):
    """A graph node that llama.cpp must not compute: its operation is put back afterwards."""

    node: int
    op: int
    part: int


class Hook:
    """Answers the scheduler about graph nodes. After each step, `finish` says what went wrong."""

    def __init__(
        self,
        cache: ExpertCache,
        layers: Mapping[int, MoeLayer],
        parts: Mapping[int, PartOf],
        kernels: Kernels,
        scaled_layers: frozenset[int] = frozenset(),
    ) -> None:
        """`parts` maps the address of a weight tensor to what it holds."""
        self._cache, self._layers, self._parts = cache, layers, parts
        self._scaled = scaled_layers
        self._passes, self.arrivals = Passes(kernels), Arrivals(kernels)
        self._next_layer = NextLayer(cache, layers)
        self._lease: Lease | None = None
        self._sweep: Sweep | None = None
        self._left_out: _LeftOut | None = None
        self._ids: Ids | None = None
        self._all_parts = {n: frozenset(range(len(m.parts))) for n, m in layers.items()}
        self._waited: AbstractSet[int] = frozenset()
        self.unrouted = set(layers)
        """Layers that were never routed so far."""
        self.routed = 0
        """The graph node that was routed last in this step."""
        self.compute_buffer: range | None = None
        """The addresses that the last decode computed in, where it came to a layer with experts."""
        self.watch: RoutingWatch | None = None
        """Told of every routing, when the reads for it are under way."""
        self.exchange: Exchange | None = None
        """Called with every routing before it is looked at."""
        self.error: BaseException | None = None
        self.interrupted = False
        """Set by another thread or a signal handler: the next layer ends the decode."""
        self.stall_seconds = 0.0
        self.split_layers = 0
        """How many layer steps were computed in passes."""
        self.compiled: CompiledHook | None = None
        """What asks this one, where single tokens are served by compiled code."""

    @property
    def split_seconds(self) -> float:
        """Time spent on moving rows for passes."""
        return self._passes.seconds

    def finish(self) -> BaseException | None:
        """End a step: let go of the last layer's experts; return what went wrong meanwhile."""
        self._put_back()
        self._let_go()
        self._next_layer.close()
        self.compute_buffer = buffer_of(self.routed) if self.routed else None
        self.routed = 0
        error, self.error = self.error, None
        return error

    def let_go(self) -> bool:
        """Let go of everything, for compiled code; return whether that went well."""
        try:
            self._let_go()
            self._next_layer.close()
        except BaseException as error:
            self.fail(error)
        return self.error is None

    def fail(self, error: BaseException) -> None:
        """Keep what went wrong, until `finish` raises it; compute nothing more until then."""
        self.error = self.error or error
        if self.compiled:
            self.compiled.refuse()

    def call(self, node: int, ask: bool, _user: object) -> bool:
        """Answer the scheduler; see the module."""
        # An exception cannot pass through C: `finish` raises it.
        try:
            if self.compiled and self.error is None and (error := self.compiled.take_error()):
                self.fail(error)
            if self.error is None:
                if not ask:
                    return self._computed(node)
                # Asked 1,500 times a token, about 24 nodes that matter: no call for the others.
                op = C.c_int.from_address(node + OP_OFFSET).value
                return op in _WATCHED and self._ask(node, op)
        except BaseException as error:
            self.fail(error)
        return ask and self._refuse(node)

    def _refuse(self, node: int) -> bool:
        """Have the scheduler stop at a node, and not compute it either.

        A product might take expert numbers for slot numbers, and count rows beyond its buffers.
        """
        self._put_back()
        self._leave_out(node)
        return True

    def _ask(self, node: int, op: int) -> bool:
        """Return whether to stop after this node; wait for what it needs."""
        if op == OP_GET_ROWS:
            return self._is_routing(node) or self._reads_scales(node)
        return self._before_product(node, _SRC0 if op == OP_MUL_MAT_ID else _SRC1)

    def _computed(self, node: int) -> bool:
        left_out = self._put_back()
        if left_out and self._ids:
            self._compute(node, left_out.part, self._ids)
        op = C.c_int.from_address(node + OP_OFFSET).value
        if op == OP_GET_ROWS:
            if self._is_routing(node):
                self._route(node)
            elif self._ids:
                self._ids.show_slots()
        elif self._ids and self._lease and self._lease.layer in self._scaled:
            self._ids.show_experts()
        return True

    def _compute(self, node: int, part: int, ids: Ids) -> None:
        """Compute a product that llama.cpp was told to leave out."""
        if self._sweep:
            groups = self._sweep.passes(part)
            self._passes.run(node, ids.experts, self._waits(groups))
        elif self._lease:
            self.arrivals.run(node, ids.slots, self._waits(self._lease.arrivals(part, ids.experts)))
            self._note_waited(self._lease, part)

    def _is_routing(self, node: int) -> bool:
        return C.string_at(node + NAME_OFFSET, len(_ROUTED)) == _ROUTED

    def _reads_scales(self, node: int) -> bool:
        if not self._ids or not self._lease or self._lease.layer not in self._scaled:
            return False
        ids = C.c_void_p.from_address(node + _SRC1).value or 0
        return ids != 0 and Tensor.from_address(ids).data == self._ids.address

    def _route(self, node: int) -> None:
        """The weights are gathered already, so the ids may now become slot numbers."""
        self._check_interrupt()
        ids_tensor = C.c_void_p.from_address(node + _SRC1).value or 0
        if C.c_int.from_address(ids_tensor + OP_OFFSET).value == OP_CPY:
            return  # the groups that the experts are in: they choose resident matrices (GroveMoE)
        if self.exchange:
            self.exchange(node)
        self._let_go()
        layer = int(C.string_at(node + NAME_OFFSET + len(_ROUTED)))
        if layer not in self._layers:
            return
        self.unrouted.discard(layer)
        self.routed = node
        self._ids = ids = Ids(ids_tensor, self._layers[layer].n_experts)
        self._ask_for(layer, ids)
        if self.watch:
            self.watch(node, layer, ids.experts)

    def _ask_for(self, layer: int, ids: Ids) -> None:
        """Have the experts brought to slots, and show the graph their numbers."""
        if not self._cache.fits(layer, ids.experts):
            self._sweep = self._cache.sweep(layer, ids.experts)
            self.split_layers += 1
            return
        self._lease = self._cache.acquire(layer, ids.experts)
        self._waited = set() if self._lease.pending else self._all_parts[layer]
        ids.assign(self._lease.slots)
        self._next_layer.routed(layer, ids.experts)

    def _before_product(self, node: int, source: int) -> bool:
        what = self._parts.get(C.c_void_p.from_address(node + source).value or 0)
        if what is None:
            return False
        self._check_ids(node, what.layer)
        lease = self._lease
        if lease is None:  # but a sweep
            self._leave_out(node, what.part)
            return True
        scaled = what.layer in self._scaled
        if scaled and self._ids:
            self._ids.show_slots()
        if what.part not in self._waited:
            if source == _SRC0 and not lease.ready(what.part) and self.arrivals.can(node):
                self._leave_out(node, what.part)
                return True
            self._wait(lease, what.part)
        # Stop after this product only if a later one has to wait while this one computes.
        return scaled or len(self._waited) < len(self._layers[what.layer].parts)

    def _check_ids(self, node: int, layer: int) -> None:
        """Refuse to compute with expert numbers that were not exchanged for slot numbers."""
        held = self._lease or self._sweep
        ids = C.c_void_p.from_address(node + _SRC2).value or 0
        address = C.c_void_p.from_address(ids + DATA_OFFSET).value if ids else None
        if not held or held.layer != layer or not self._ids or address != self._ids.address:
            raise UnsupportedModelError(
                f"layer {layer} multiplies with experts whose routing was not seen. {WHAT_TO_DO}"
            )

    def _leave_out(self, node: int, part: int = 0) -> None:
        op = C.c_int.from_address(node + OP_OFFSET)
        self._left_out = _LeftOut(node, op.value, part)
        op.value = OP_NONE

    def _put_back(self) -> _LeftOut | None:
        """Give the node that was left out its operation back; return it."""
        left_out, self._left_out = self._left_out, None
        if left_out:
            C.c_int.from_address(left_out.node + OP_OFFSET).value = left_out.op
        return left_out

    def _let_go(self) -> None:
        """Close what the layer before holds."""
        lease, sweep = self._lease, self._sweep
        self._lease = self._sweep = self._ids = None
        if lease:
            lease.close()
        if sweep:
            sweep.close()

    def _check_interrupt(self) -> None:
        if self.interrupted:
            raise InterruptedDecodeError("the decode was interrupted")

    def _waits(self, groups: Iterator[_Group]) -> Iterator[_Group]:
        """Pass on what becomes ready, and count the time until it does."""
        while True:
            self._check_interrupt()
            start = time.perf_counter()
            group = next(groups, None)
            self.stall_seconds += time.perf_counter() - start
            if group is None:
                return
            yield group

    def _wait(self, lease: Lease, part: int) -> None:
        start = time.perf_counter()
        lease.wait(part)
        self.stall_seconds += time.perf_counter() - start
        self._note_waited(lease, part)

    def _note_waited(self, lease: Lease, part: int) -> None:
        waited = {*self._waited, part}
        # What has come meanwhile needs no stop of its own.
        for later in self._all_parts[lease.layer] - waited:
            if lease.ready(later):
                lease.wait(later)
                waited.add(later)
        self._waited = waited
