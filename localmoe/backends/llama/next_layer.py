"""While a long step computes one layer, the experts of the next one are read.

A step of many tokens routes to nearly all experts of every layer. So those of the next layer need
no guess: the device goes on with them when it has read what this layer needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from localmoe.cache.expert_cache import ExpertCache
from localmoe.cache.lease import Lease
from localmoe.weights.catalog import MoeLayer

_LEAST_TOKENS = 8
_LEAST_COVERAGE = 0.6
"""Share of a layer's experts that a step must use for the next layer to be expected to do so."""


class NextLayer:
    """Holds experts of the layer to come: `routed` after each layer's own lease, then `close`.

    What a layer used in the last long step is expected of it in the next one; before that, all.
    What was read in vain is forgotten: it must not take the place of what is used.
    """

    def __init__(self, cache: ExpertCache, layers: Mapping[int, MoeLayer]) -> None:
        self._cache, self._layers = cache, layers
        order = sorted(layers)
        # Not the last one: llama.cpp computes it for those tokens alone whose logits are wanted.
        self._next = dict(zip(order, order[1:-1], strict=False))
        self._expected = {number: set(range(layers[number].n_experts)) for number in order}
        self._held: dict[int, _Held] = {}

    def routed(self, layer: int, experts: Sequence[int]) -> None:
        """Have the next layer's experts read behind what this layer waits for.

        `experts` are those of all tokens, [T * K].
        """
        if self._held:
            self._settle(layer, experts)
        if len(experts) < _LEAST_TOKENS * self._layers[layer].n_experts_used:
            return
        used = set(experts)
        if len(used) < _LEAST_COVERAGE * self._layers[layer].n_experts:
            return
        self._expected[layer] = used
        following = self._next.get(layer)
        if following is not None:
            lease = self._cache.acquire_ahead(following, sorted(self._expected[following]))
            if lease:
                self._held[following] = _Held(lease, {load.key.expert for load in lease.pending})

    def close(self) -> None:
        """Let go of everything. Waits for reads of a layer that was never reached."""
        held, self._held = self._held, {}
        for layer in held.values():
            layer.lease.close()
            self._cache.discard(layer.lease.layer, layer.useless)

    def _settle(self, layer: int, experts: Sequence[int]) -> None:
        """Note what this layer does not need, and let go of layers that are done.

        What this layer does not need may still be on its way: it is not waited for yet.
        """
        current = self._held.pop(layer, None)
        self.close()
        if current:
            current.useless.difference_update(experts)
            self._held[layer] = current


@dataclass
class _Held:
    """A layer's experts; `useless` are those that were read, and not asked for so far."""

    lease: Lease
    useless: set[int]
