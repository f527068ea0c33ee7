"""The compiled library, where it was built, and its structures.

Each structure here is the beginning of one in `experts.h` or `callback.c`; what follows in memory
is the library's own. Sizes and places are compared when it is loaded.
"""

from __future__ import annotations

import ctypes as C
from functools import cache
from pathlib import Path
from typing import Any

from localmoe.errors import EngineVersionError

PATH = Path(__file__).parent / "_native.so"
ABSENT, ELSEWHERE = -1, -2
MOST_USED, MOST_PARTS = 64, 16
FINE, READ_FAILED, INTERRUPTED, NOT_COMPUTED, NOT_PREPARED = range(5)

SETTLE = C.CFUNCTYPE(None)
CALL = C.CFUNCTYPE(C.c_bool, C.c_void_p, C.c_bool, C.c_void_p)
LET_GO = C.CFUNCTYPE(C.c_bool)
PREPARE = C.CFUNCTYPE(C.c_bool, C.c_int32, C.c_void_p, C.c_int32)
EXCHANGE = C.CFUNCTYPE(None, C.c_void_p)


class Part(C.Structure):
    """lm_part: where one part of a layer's experts lies, in the file and in a slot."""

    _fields_ = [
        *((name, C.c_uint64) for name in ("offset", "nbytes", "start")),
        *((name, C.c_int32) for name in ("fd", "block")),
    ]


class Layer(C.Structure):
    """lm_layer: the slots of a layer's experts, int32 [E], and their parts."""

    _fields_ = [
        *((name, C.c_void_p) for name in ("slots", "parts")),
        *((name, C.c_int32) for name in ("n_experts", "n_parts", "class_index", "reserved")),
    ]


class Class(C.Structure):
    """lm_class: slots of one size, who is in them, and who may go."""

    _fields_ = [
        ("base", C.c_void_p),
        ("stride", C.c_uint64),
        *((name, C.c_void_p) for name in ("demanded", "holders", "candidates")),
        ("listed_at", C.c_uint64),
        *((name, C.c_int32) for name in ("n_candidates", "next_candidate")),
    ]


class Experts(C.Structure):
    """lm_experts: the tables, the log of what was done, and what went wrong."""

    _fields_ = [
        *((name, C.c_void_p) for name in ("layers", "classes")),
        ("settle", SETTLE),
        ("log", C.c_void_p),
        *((name, C.c_int32) for name in ("log_size", "log_used", "settle_at", "look_limit")),
        *((name, C.c_int32) for name in ("interrupted", "trouble")),
        *((f"failed_{name}", C.c_int32) for name in ("row", "part", "expert", "errno")),
        ("spin_seconds", C.c_double),
        ("stall_seconds", C.c_double),
        *((name, C.c_uint64) for name in ("request", "known")),
        *((name, C.c_int32) for name in ("row", "n_used", "n_loads")),
        *((name, C.c_int32 * MOST_USED) for name in ("experts", "slots")),
    ]


class Weight(C.Structure):
    """lm_weight: which part of which layer a weight tensor holds."""

    _fields_ = [("tensor", C.c_void_p), ("row", C.c_int32), ("part", C.c_int32)]


class Products(C.Structure):
    """lm_products: nodes of one row and one matrix each, and graphs of the first n of them."""

    _fields_ = [(name, C.c_void_p) for name in ("matrices", "rows", "nodes", "graphs")]


class Callback(C.Structure):
    """lm_callback: what it calls, and what it counted."""

    _fields_ = [
        ("experts", C.c_void_p),
        *((n, C.c_int32) for n in ("mul_mat_id", "add_id", "get_rows", "cpy")),
        *((n, C.c_int32) for n in ("flash_attn", "none", "f32", "reserved")),
        *((name, C.c_void_p) for name in ("compute", "set_threads", "backend")),
        *((name, C.c_void_p) for name in ("alone", "alone_graph")),
        ("python", CALL),
        ("let_go", LET_GO),
        ("prepare", PREPARE),
        *((name, C.c_void_p) for name in ("weights", "products", "rows", "routed")),
        *((name, C.c_int32) for name in ("n_weights", "n_layers", "refuses", "watched")),
        *((name, C.c_int32) for name in ("n_threads", "n_shared_threads")),
        ("exchange", EXCHANGE),
        ("last_routed", C.c_void_p),
        *((name, C.c_uint64) for name in ("questions", "stops")),
        *((f"{name}_seconds", C.c_double) for name in ("stop", "kernel")),
    ]


class Library:
    """The library's functions. `layout` are the figures that its structures are compared by."""

    def __init__(self, path: Path) -> None:
        self.library = C.CDLL(str(path))
        self.layout = self._layout()
        self._check_sizes()
        self.experts_open = self._declare("lm_experts_open", C.c_int)
        self.experts_close = self._declare("lm_experts_close", None)
        self.experts_release = self._declare("lm_experts_release", None)
        self.experts_wait = self._declare("lm_experts_wait", C.c_bool, C.c_int32)
        self.experts_arrivals = self._declare(
            "lm_experts_arrivals", C.c_int32, C.c_int32, C.c_void_p, C.c_int32
        )
        self.experts_acquire = self._declare(
            "lm_experts_acquire", C.c_bool, C.c_int32, C.c_void_p, C.c_int32
        )
        self.callback_finish = self._declare("lm_callback_finish", None)
        self.callback_call = C.cast(self.library.lm_callback_call, C.c_void_p).value or 0

    def make(self, structure: type[Any]) -> Any:
        """Return a structure full of zeros, with room behind it for what is the library's own."""
        nbytes = self.layout["callback" if structure is Callback else "experts"]
        return structure.from_buffer(C.create_string_buffer(nbytes))

    def _declare(self, name: str, result: Any, *arguments: Any) -> Any:
        """Return a function that gets a structure's address first."""
        function = getattr(self.library, name)
        function.restype, function.argtypes = result, [C.c_void_p, *arguments]
        return function

    def _layout(self) -> dict[str, int]:
        names = (
            *("part", "layer", "class", "experts", "weight", "products", "callback", "tensor"),
            *("tensor.ne", "tensor.nb", "tensor.op", "tensor.op_params"),
            *("tensor.src", "tensor.data", "tensor.name"),
            *("experts.slots", "callback.kernel_seconds"),
        )
        found = (C.c_int64 * 64)()
        self.library.lm_layout.restype = C.c_int32
        count = self.library.lm_layout(found)
        self._check("its own figures", count, len(names))
        return dict(zip(names, found, strict=False))

    def _check_sizes(self) -> None:
        whole = {"part": Part, "layer": Layer, "class": Class}
        for name, structure in {**whole, "weight": Weight, "products": Products}.items():
            self._check(name, self.layout[name], C.sizeof(structure))
        self._check("experts", self.layout["experts.slots"], Experts.slots.offset)
        ours = Callback.kernel_seconds.offset
        self._check("callback", self.layout["callback.kernel_seconds"], ours)

    def _check(self, what: str, found: int, wanted: int) -> None:
        if found != wanted:
            raise EngineVersionError(
                f"{PATH.name} was built from other sources ({what}: {wanted} wanted, {found} "
                "found); build it again: pip install --force-reinstall --no-deps localmoe, or in "
                "a checkout: touch pyproject.toml && make .venv/.ready"
            )


@cache
def library() -> Library | None:
    """Return the library; None where it was not built. Raises EngineVersionError if it is old."""
    return Library(PATH) if PATH.exists() else None
