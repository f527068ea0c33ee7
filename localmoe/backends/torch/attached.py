"""A model's modules of experts, made to be served from slots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from localmoe.backends.torch.expert_products import ExpertProducts, Parts
from localmoe.backends.torch.expert_sources import ExpertSource
from localmoe.backends.torch.far_experts import FarExperts, measure
from localmoe.backends.torch.kernels import find_kernel
from localmoe.backends.torch.levels import Levels
from localmoe.backends.torch.packed_experts import Kernels, PackedExperts
from localmoe.backends.torch.planned import Planned
from localmoe.backends.torch.routed import RoutedExperts
from localmoe.backends.torch.routing_hooks import hook_routers
from localmoe.backends.torch.server import ExpertServer
from localmoe.backends.torch.slot_weights import (
    DecodedWeights,
    Place,
    SlotWeights,
    StoredWeights,
    memory_tensor,
)
from localmoe.backends.torch.stripped import ExpertModule
from localmoe.cache.expert_cache import ExpertCache
from localmoe.cache.slots import SlotLayout


def attach(
    model: PreTrainedModel, planned: Planned, levels: Levels, *, cpu_experts: bool
) -> ExpertServer:
    """Have every module of experts served from the slots; return who serves them.

    With `cpu_experts` those that a device lacks are computed in host memory where that is faster,
    which is measured here. Raises ExpertReadError.
    """
    layers = {layer.layer: layer for layer in planned.source.catalog.layers}
    near = _Places(planned, levels.cache, levels.slots, levels.memory)
    far = None
    if cpu_experts and levels.has_device:
        far = _Places(planned, levels.below, levels.pool, memory_tensor(levels.pool.memory))
    server, found = ExpertServer(levels.cache, levels.used), {}
    for one in planned.stripped.modules:
        module: Any = one.module
        products = ExpertProducts(module, near.parts(one), far.parts(one) if far else None)
        layer, packed = layers[one.layer], None
        if levels.has_device:
            kernels, server.note = near.kernels(one, products.is_transposed)
            if kernels:
                packed = PackedExperts(layer, server, levels.memory, products, kernels)
        module.localmoe = RoutedExperts(layer, module, server, products, packed)
        found[one.layer] = products
        hook_routers(model, one.name, layer, server)
    if far:
        costs = measure(levels, layers.values(), lambda layer, slot: found[layer].far_row(slot))
        server.far = FarExperts(levels, costs)
    return server


class _Places:
    """The parts of experts as they lie in the slots of one level."""

    def __init__(
        self, planned: Planned, cache: ExpertCache, slots: SlotLayout, memory: Tensor
    ) -> None:
        self._planned, self._cache, self._slots, self._memory = planned, cache, slots, memory

    def parts(self, one: ExpertModule) -> Parts:
        """Return the two parts of the experts of a layer."""
        first, second = (_weights(self._memory, place, sources) for place, sources in self._of(one))
        return first, second

    def kernels(self, one: ExpertModule, is_transposed: bool) -> tuple[Kernels | None, str]:
        """Return kernels that multiply both parts as they are; None, and why, if there are none."""
        device = self._memory.device
        found = []
        for place, sources in self._of(one):
            kernel, reason = find_kernel(sources, place, device, is_transposed=is_transposed)
            if kernel is None:
                return None, f"experts are decoded before each use: {reason}"
            found.append(kernel)
        return (found[0], found[1]), ""

    def _of(self, one: ExpertModule) -> Iterator[tuple[Place, list[ExpertSource]]]:
        index = self._slots.class_index(one.layer)
        for part, names in enumerate(one.parts):
            start = self._cache.placement.start(one.layer, 0, part)
            stride, count = self._slots.classes[index].stride_nbytes, self._slots.counts[index]
            sources = [self._planned.source.sources[f"{one.name}.{name}"] for name in names]
            yield Place(start, stride, count), sources


def _weights(memory: Tensor, place: Place, sources: list[ExpertSource]) -> SlotWeights:
    if all(source.is_stored for source in sources):
        return StoredWeights(memory, place, [s.shape for s in sources], sources[0].dtype)
    return DecodedWeights(memory, place, sources)
