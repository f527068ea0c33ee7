"""How many slots each size of experts gets, as the planner would share them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from localmoe.cache.slots import SlotClass, share_slots, slot_classes
from localmoe.errors import SettingsError
from localmoe.prediction.trace import Trace
from localmoe.weights.catalog import MoeLayer


@dataclass(frozen=True)
class Layout:
    """Groups of layers that share slots, and how many each group has."""

    groups: tuple[tuple[MoeLayer, ...], ...]
    slots: tuple[int, ...]

    def group_of_layer(self, layers: Sequence[int]) -> npt.NDArray[np.int64]:
        """Return the place of each layer's group, [L]."""
        found = {m.layer: at for at, group in enumerate(self.groups) for m in group}
        return np.array([found[layer] for layer in layers], np.int64)


def shared_layout(trace: Trace, slots: int) -> Layout:
    """Share slots among all layers whose experts have the same sizes, as engines do.

    Raises SettingsError where they are fewer than one layer of each size needs for a token.
    """
    return _layout(slot_classes(trace.sized_layers(), 1), slots)


def split_layout(trace: Trace, slots: int) -> Layout:
    """Give each layer slots of its own. Raises SettingsError as `shared_layout` does."""
    return _layout([slot_classes([layer], 1)[0] for layer in trace.sized_layers()], slots)


def least_slots(trace: Trace) -> int:
    """Return with how many slots a shared layout begins."""
    return sum(_least(slot_classes(trace.sized_layers(), 1)))


def _least(classes: Sequence[SlotClass]) -> list[int]:
    return [max(layer.n_experts_used for layer in c.layers) for c in classes]


def _layout(classes: Sequence[SlotClass], slots: int) -> Layout:
    least = _least(classes)
    counts = share_slots(classes, least, lambda counts: sum(counts) <= slots)
    if counts is None:
        raise SettingsError(
            f"{slots} slots are fewer than the {sum(least)} experts that a step needs at once: "
            "give a larger size"
        )
    return Layout(tuple(c.layers for c in classes), tuple(counts))
