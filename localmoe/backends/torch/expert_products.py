"""What one expert of a layer computes, wherever its weights lie."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from localmoe.backends.torch.slot_weights import SlotWeights

Parts = tuple[SlotWeights, SlotWeights]
FIRST, SECOND = 0, 1
"""The parts of an expert: what leads to the activation, and what leads back."""


class ExpertProducts:
    """The two products of an expert, and what lies between and after them."""

    def __init__(self, module: nn.Module, near: Parts, far: Parts | None = None) -> None:
        """`near` lie where the module computes; `far` in host memory, to be computed there."""
        self._near, self._far = near, far or near
        self.is_transposed = bool(getattr(module, "is_transposed", False))
        has_gate = getattr(module, "has_gate", True)
        self.inner: Any = module._apply_gate if has_gate else module.act_fn
        """What lies between the products, [rows, I or 2 I] to [rows, I]."""
        has_norm = getattr(module, "has_post_expert_norm", False)
        self.after: Any = module.post_expert_norm if has_norm else None
        """What is done with a result, if anything."""

    def first(self, inputs: Tensor, slot: int, *, is_far: bool) -> Tensor:
        """Return the activations of an expert, [rows, I], where its weights are."""
        part = (self._far if is_far else self._near)[FIRST]
        activations: Tensor = self.inner(
            self._product(inputs.cpu() if is_far else inputs, part, slot)
        )
        return activations

    def second(self, activations: Tensor, slot: int, *, is_far: bool) -> Tensor:
        """Return what an expert makes of its activations, [rows, D], where its weights are."""
        part = (self._far if is_far else self._near)[SECOND]
        return self._product(activations, part, slot)

    def far_row(self, slot: int) -> Tensor:
        """Return what an expert in host memory makes of some row: to see how long it takes."""
        weight, _ = self._far[FIRST].at(slot)
        width = weight.shape[0 if self.is_transposed else 1]
        row = torch.ones((1, width), dtype=weight.dtype)
        return self.second(self.first(row, slot, is_far=True), slot, is_far=True)

    def _product(self, inputs: Tensor, part: SlotWeights, slot: int) -> Tensor:
        weight, bias = part.at(slot)
        if not self.is_transposed:
            return linear(inputs, weight, bias)
        product = inputs @ weight
        return product if bias is None else product + bias
