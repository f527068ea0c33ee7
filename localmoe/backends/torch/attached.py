"""A model's modules of experts, made to be served from slots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from localmoe.backends.torch.expert_sources import ExpertSource
from localmoe.backends.torch.far_experts import FarExperts, measure
from localmoe.backends.torch.levels import Levels
from localmoe.backends.torch.planned import Planned
from localmoe.backends.torch.routed import Parts, RoutedExperts
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
    near = _parts(planned, levels.cache, levels.slots, levels.memory)
    uses_far = cpu_experts and levels.has_device
    memory = memory_tensor(levels.pool.memory)
    far = _parts(planned, levels.below, levels.pool, memory) if uses_far else None
    costs = {}
    server = ExpertServer(levels.cache, levels.used)
    found = {}
    for one in planned.stripped.modules:
        module: Any = one.module
        parts = far[one.layer] if far else None
        routed = RoutedExperts(layers[one.layer], module, server, near[one.layer], parts)
        found[one.layer] = module.localmoe = routed
        hook_routers(model, one.name, layers[one.layer], server)
    if uses_far:
        costs = measure(levels, layers.values(), lambda layer, slot: found[layer].far_row(slot))
        server.far = FarExperts(levels, costs)
    return server


def _parts(
    planned: Planned, cache: ExpertCache, slots: SlotLayout, memory: Tensor
) -> dict[int, Parts]:
    """Return the parts of each layer's experts as they lie in the slots of a level."""
    found = {}
    for one in planned.stripped.modules:
        first, second = _parts_of(one, planned, cache, slots, memory)
        found[one.layer] = first, second
    return found


def _parts_of(
    one: ExpertModule, planned: Planned, cache: ExpertCache, slots: SlotLayout, memory: Tensor
) -> Iterator[SlotWeights]:
    index = slots.class_index(one.layer)
    for part, names in enumerate(one.parts):
        start = cache.placement.start(one.layer, 0, part)
        place = Place(start, slots.classes[index].stride_nbytes, slots.counts[index])
        sources = [planned.source.sources[f"{one.name}.{name}"] for name in names]
        yield _weights(memory, place, sources)


def _weights(memory: Tensor, place: Place, sources: list[ExpertSource]) -> SlotWeights:
    if all(source.is_stored for source in sources):
        return StoredWeights(memory, place, [s.shape for s in sources], sources[0].dtype)
    return DecodedWeights(memory, place, sources)
