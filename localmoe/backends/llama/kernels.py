"""llama.cpp's own CPU kernels, for nodes that are computed outside of its graph."""

from __future__ import annotations

import ctypes as C
from collections.abc import Sequence

from localmoe.backends.llama.bindings import (
    InitParams,
    Tensor,
    declare,
    ggml_free,
    ggml_init,
    shared_library,
)
from localmoe.errors import EngineError

_base, _cpu = shared_library("ggml-base"), shared_library("ggml-cpu")
_graph_overhead = declare(_base, "ggml_graph_overhead_custom", C.c_size_t, C.c_size_t, C.c_bool)
_new_graph = declare(_base, "ggml_new_graph_custom", C.c_void_p, C.c_void_p, C.c_size_t, C.c_bool)
_add_node = declare(_base, "ggml_graph_add_node", None, C.c_void_p, C.c_void_p)
_backend_init = declare(_cpu, "ggml_backend_cpu_init", C.c_void_p)
_set_threads = declare(_cpu, "ggml_backend_cpu_set_n_threads", None, C.c_void_p, C.c_int)
_graph_compute = declare(_base, "ggml_backend_graph_compute", C.c_int, C.c_void_p, C.c_void_p)
_backend_free = declare(_base, "ggml_backend_free", None, C.c_void_p)


def addresses() -> tuple[int, int]:
    """Return where llama.cpp's functions are that compiled code calls: (compute, set threads)."""
    found = (C.cast(function, C.c_void_p).value for function in (_graph_compute, _set_threads))
    compute, set_threads = (int(address or 0) for address in found)
    return compute, set_threads


class Kernels:
    """A CPU backend of our own, with as many threads as llama.cpp's. Close it."""

    def __init__(self, threads: int) -> None:
        self.n_threads = threads
        self._arenas: list[int] = []
        self._backend = _backend_init()
        if not self._backend:
            raise EngineError("llama.cpp has no CPU backend; reinstall llama-cpp-python")
        _set_threads(self._backend, threads)

    @property
    def backend(self) -> int:
        """llama.cpp's handle of the backend."""
        return int(self._backend)

    def graph(self, nodes: Sequence[Tensor]) -> int:
        """Make a graph of these nodes, which the caller keeps and may change between runs."""
        arena = ggml_init(InitParams(_graph_overhead(len(nodes), False), None, True))
        self._arenas.append(arena)
        graph = int(_new_graph(arena, len(nodes), False))
        for node in nodes:
            _add_node(graph, C.addressof(node))
        return graph

    def compute(self, graph: int, what: Tensor) -> None:
        """Compute a graph; `what` names it if that fails. Raises EngineError."""
        status = _graph_compute(self._backend, graph)
        if status:
            name = what.name.decode(errors="replace")
            raise EngineError(f"llama.cpp could not compute a part of {name} ({status})")

    def close(self) -> None:
        """Free llama.cpp's side. May be called twice."""
        if self._backend:
            _backend_free(self._backend)
            for arena in self._arenas:
                ggml_free(arena)
            self._backend = 0
