"""Replays a recorded routing: whatever a model's router chooses, the recorded experts are used.

A trace is an .npz with `routing`, int [T, L, K]: the experts that real text was routed to, token by
token, in each MoE layer. The model has as many MoE layers, experts and active experts as the trace,
and random weights. At the moment when localmoe is told what a router chose, the recorded numbers
are written over the chosen ones, in llama.cpp's own memory: everything after it (cache, reads,
products) then happens as for that text. The routing weights stay those of the router's own choice,
so the logits mean nothing; the bytes read and the arithmetic are exactly those of the trace.

An engine that has all experts in memory has no such moment. Its speed does not depend on which
experts are chosen: K products a layer, with matrices that no processor cache holds. It runs along
its own routing, without any callback, and that is the compute side of the limit.

What looks at the router ahead of time (prediction) cannot be right here: it must notice.
"""

from __future__ import annotations

import ctypes as C
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from localmoe.backends.llama.bindings import NAME_OFFSET, SRC_OFFSET, Tensor
from localmoe.backends.llama.engine import LlamaEngine

_PREFIX = b"ffn_moe_weights-"
_IDS_SOURCE = 1  # the gathering of the weights: its second source are the ids


@dataclass(frozen=True)
class Trace:
    """Recorded experts, int32 [T, L, K]."""

    routing: npt.NDArray[np.int32]
    n_experts: int

    @classmethod
    def read(cls, path: Path) -> Trace:
        with np.load(path) as file:
            return cls(file["routing"].astype(np.int32), int(file["experts"]))

    @property
    def layers(self) -> int:
        return int(self.routing.shape[1])

    @property
    def used(self) -> int:
        return int(self.routing.shape[2])


def replay(engine: LlamaEngine, trace: Trace) -> None:
    """Let a streaming engine use the trace's experts from now on: token n those of its row n.

    Raises SystemExit where model and trace do not fit together.
    """
    layers = sorted(engine.catalog.layers, key=lambda layer: layer.layer)
    wanted = (trace.layers, {trace.n_experts}, {trace.used})
    found = (len(layers), {one.n_experts for one in layers}, {one.n_experts_used for one in layers})
    if wanted != found:
        raise SystemExit(f"the trace has (layers, experts, active) {wanted}, the model {found}")
    place = {layer.layer: index for index, layer in enumerate(layers)}
    hook = engine._streaming.callback  # type: ignore[union-attr]

    def exchange(node: int) -> None:
        layer = int(C.string_at(node + NAME_OFFSET + len(_PREFIX)))
        ids = _ids_of(node)
        ids[:] = trace.routing[engine.position : engine.position + len(ids), place[layer]]

    hook.exchange(exchange)


def _ids_of(node: int) -> npt.NDArray[np.int32]:
    """Return the chosen experts, int32 [T, K], in llama.cpp's memory."""
    address = C.c_void_p.from_address(node + SRC_OFFSET + _IDS_SOURCE * C.sizeof(C.c_void_p)).value
    t = Tensor.from_address(address or 0)
    used, tokens, stride = t.ne[0], t.ne[1], t.nb[1]
    memory = (C.c_char * (stride * (tokens - 1) + 4 * used)).from_address(t.data)
    return np.ndarray((tokens, used), np.int32, memory, strides=(stride, 4))
