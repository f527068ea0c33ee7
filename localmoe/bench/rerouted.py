"""Replays a recorded routing: whatever a model's router chooses, the recorded experts are used.

The model has as many MoE layers, experts and active experts as the trace, and random weights.
At the moment when localmoe is told what a router chose, the recorded numbers
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
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from localmoe.backends.llama.bindings import NAME_OFFSET, SRC_OFFSET, Tensor
from localmoe.backends.llama.engine import LlamaEngine
from localmoe.errors import SettingsError
from localmoe.prediction.trace import Trace

_PREFIX = b"ffn_moe_weights-"
_IDS_SOURCE = 1  # the gathering of the weights: its second source are the ids


def reroute(engine: LlamaEngine, trace: Trace) -> None:
    """Let an engine use the trace's experts from now on: token n those of its row n.

    Nothing happens in an engine that has all experts in memory. Raises SettingsError where model
    and trace do not fit together.
    """
    layers = engine.catalog.layers
    wanted = (len(trace.layers), {trace.n_experts}, {trace.n_experts_used})
    found = (len(layers), {one.n_experts for one in layers}, {one.n_experts_used for one in layers})
    if wanted != found:
        raise SettingsError(
            f"the trace has (layers, experts, experts used) {wanted}, and the model {found}"
        )
    engine.exchange_routing(_exchange(engine, trace))


def _exchange(engine: LlamaEngine, trace: Trace) -> Callable[[int], None]:
    place = {layer.layer: index for index, layer in enumerate(engine.catalog.layers)}

    def exchange(node: int) -> None:
        layer = int(C.string_at(node + NAME_OFFSET + len(_PREFIX)))
        ids = _ids_of(node)
        ids[:] = trace.routing[engine.position : engine.position + len(ids), place[layer]]

    return exchange


def _ids_of(node: int) -> npt.NDArray[np.int32]:
    """Return the chosen experts, int32 [T, K], in llama.cpp's memory."""
    address = C.c_void_p.from_address(node + SRC_OFFSET + _IDS_SOURCE * C.sizeof(C.c_void_p)).value
    t = Tensor.from_address(address or 0)
    used, tokens, stride = t.ne[0], t.ne[1], t.nb[1]
    memory = (C.c_char * (stride * (tokens - 1) + 4 * used)).from_address(t.data)
    return np.ndarray((tokens, used), np.int32, memory, strides=(stride, 4))
