"""The compiled callback: answers for layers that route one token, asks the hook for the rest."""

from __future__ import annotations

import ctypes as C
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from localmoe.backends.llama.arrivals import Arrivals
from localmoe.backends.llama.bindings import (
    OP_ADD_ID,
    OP_CPY,
    OP_FLASH_ATTN,
    OP_GET_ROWS,
    OP_MUL_MAT_ID,
    OP_NONE,
    TYPE_F32,
    Tensor,
)
from localmoe.backends.llama.kernels import Kernels, addresses
from localmoe.cache.compiled import CompiledExperts
from localmoe.errors import EngineError, EngineVersionError, InterruptedDecodeError
from localmoe.native.library import (
    CALL,
    EXCHANGE,
    INTERRUPTED,
    LET_GO,
    NOT_COMPUTED,
    PREPARE,
    Callback,
    Library,
    Products,
    Weight,
)

Exchange = Callable[[int], None]
"""Gets the graph node that gathers the routing weights, and may change the numbers before it."""


class Counts(NamedTuple):
    """What a compiled callback did so far; the time of its stops has all the others in it."""

    questions: int
    stops: int
    stop_seconds: float
    kernel_seconds: float


class Fallback(Protocol):
    """The hook, as far as it is asked from compiled code. Nothing here may raise."""

    def call(self, node: int, ask: bool, user: object) -> bool:
        """Answer as the scheduler's callback."""
        ...

    def let_go(self) -> bool:
        """Let go of all experts; return whether that went well."""
        ...

    def fail(self, error: BaseException) -> None:
        """Keep what went wrong, to be raised when the step is over."""
        ...


class CompiledHook:
    """One engine's compiled callback. `address` and `user_data` are what llama.cpp gets."""

    def __init__(
        self,
        library: Library,
        experts: CompiledExperts,
        parts: Mapping[int, tuple[int, int]],
        arrivals: Arrivals,
        python_layers: frozenset[int],
        fallback: Fallback,
    ) -> None:
        """`parts` maps the address of a weight tensor to (layer, part).

        `python_layers` are those that the fallback serves in any case.
        """
        _check_tensor(library)
        self._library, self._experts, self._arrivals = library, experts, arrivals
        self._fallback = fallback
        rows = experts.rows
        order = [(tensor, rows[layer], part) for tensor, (layer, part) in sorted(parts.items())]
        self._weights = (Weight * len(order))(*(Weight(*one) for one in order))
        self._products = (Products * len(order))()
        self._rows = (C.c_int32 * (max(rows) + 1))(
            *(-1 if n in python_layers else rows.get(n, -1) for n in range(max(rows) + 1))
        )
        self._routed = (C.c_uint8 * len(rows))()
        # Kept: C holds only their addresses.
        self._python, self._let_go = CALL(fallback.call), LET_GO(fallback.let_go)
        self._prepare = PREPARE(self._make_products)
        self._exchange = EXCHANGE()
        self._alone = Tensor(op=OP_NONE)
        self.struct: Callback = library.make(Callback)
        self._fill(arrivals.kernels)
        self.address, self.user_data = library.callback_call, C.addressof(self.struct)

    def _fill(self, kernels: Kernels) -> None:
        s = self.struct
        s.experts = C.addressof(self._experts.struct)
        s.mul_mat_id, s.add_id, s.get_rows = OP_MUL_MAT_ID, OP_ADD_ID, OP_GET_ROWS
        s.cpy, s.none, s.f32 = OP_CPY, OP_NONE, TYPE_F32
        s.flash_attn, s.n_threads = OP_FLASH_ATTN, kernels.n_threads
        s.compute, s.set_threads = addresses()
        s.backend = kernels.backend
        s.alone, s.alone_graph = C.addressof(self._alone), kernels.graph([self._alone])
        s.python, s.let_go, s.prepare = self._python, self._let_go, self._prepare
        s.weights, s.n_weights = C.addressof(self._weights), len(self._weights)
        s.products, s.routed = C.addressof(self._products), C.addressof(self._routed)
        s.rows, s.n_layers = C.addressof(self._rows), len(self._rows)

    @property
    def stall_seconds(self) -> float:
        """Time that was waited for reads."""
        return float(self._experts.struct.stall_seconds)

    @property
    def last_routed(self) -> int:
        """The graph node that was routed last in this step; 0: none was."""
        return self.struct.last_routed or 0

    def counts(self) -> Counts:
        """Return what was done so far."""
        return Counts(*(getattr(self.struct, name) for name in Counts._fields))

    def routed_layers(self) -> set[int]:
        """Return the layers that were ever routed here."""
        return {layer for layer, row in self._experts.rows.items() if self._routed[row]}

    def set_shared_threads(self, n_threads: int | None) -> None:
        """Compute on so many threads, with the bits of all; None: on all."""
        self.struct.n_shared_threads = n_threads or 0

    def set_spin(self, seconds: float) -> None:
        """Keep the core for so long when waiting, instead of going to sleep at once."""
        self._experts.struct.spin_seconds = seconds

    def set_interrupted(self, wanted: bool) -> None:
        """Have the step end at the next layer."""
        self._experts.struct.interrupted = wanted

    def set_watched(self, wanted: bool) -> None:
        """Leave all routings to Python, where somebody watches them."""
        self.struct.watched = wanted

    def set_exchange(self, exchange: Exchange | None) -> None:
        """Call this with each routing before it is looked at; it must not raise."""
        self._exchange = EXCHANGE(exchange) if exchange else EXCHANGE()
        self.struct.exchange = self._exchange

    def refuse(self) -> None:
        """Leave all that follows in this step to Python, which has an error to raise."""
        self.struct.refuses = True

    def take_error(self) -> BaseException | None:
        """Return what went wrong in compiled code, if anything did."""
        trouble = self._experts.struct.trouble
        if not trouble:
            return None
        if trouble == INTERRUPTED:
            return InterruptedDecodeError("the decode was interrupted")
        if trouble == NOT_COMPUTED:
            return EngineError("llama.cpp could not compute a product with experts")
        return self._experts.take_error()

    def finish(self) -> BaseException | None:
        """End a step: let go of everything; return what went wrong and was not asked for yet."""
        self._library.callback_finish(self.user_data)
        error = self.take_error()
        self._experts.struct.trouble = self.struct.refuses = 0
        self.struct.last_routed = None
        return error

    def _make_products(self, weight: int, node: int, n: int) -> bool:
        try:
            self._products[weight] = self._arrivals.prepare(node, n)
            return True
        except BaseException as error:  # cannot pass through C
            self._fallback.fail(error)
            return False


def _check_tensor(library: Library) -> None:
    """Raise EngineVersionError unless the library's tensor is the one of `bindings`."""
    found = {"tensor": C.sizeof(Tensor)}
    for name in ("ne", "nb", "op", "op_params", "src", "data", "name"):
        found[f"tensor.{name}"] = getattr(Tensor, name).offset
    wrong = [name for name, ours in found.items() if library.layout[name] != ours]
    if wrong:
        raise EngineVersionError(
            f"the compiled callback has another {', '.join(wrong)} than llama.cpp: build it again"
        )
