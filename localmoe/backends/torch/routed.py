"""The routed experts of one layer, computed as they come, and added up in an order of its own.

Every row of every expert is the same product whenever it is computed, and rows are added up by
rising expert number as transformers' own loop does: which experts were in memory changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from localmoe.backends.torch.server import ExpertServer
from localmoe.backends.torch.slot_weights import SlotWeights
from localmoe.weights.catalog import MoeLayer

Parts = tuple[SlotWeights, SlotWeights]
_SUM_IN_FLOAT32 = frozenset({"NemotronHExperts", "Inkling2Experts"})
"""Modules of transformers that add experts up in another type than that of the model."""
FIRST, SECOND = 0, 1
"""The parts of an expert: what leads to the activation, and what leads back."""


class Rows(NamedTuple):
    """What one expert is to do: these tokens, as the choice of this rank of each."""

    tokens: Tensor
    ranks: Tensor


class RoutedExperts:
    """Stands behind a module of routed experts whose weights were taken out."""

    def __init__(
        self,
        layer: MoeLayer,
        module: nn.Module,
        server: ExpertServer,
        near: Parts,
        far: Parts | None = None,
    ) -> None:
        """`near` lie where the module computes; `far` in host memory, to be computed there."""
        self._layer, self._n_experts, self._server = layer.layer, layer.n_experts, server
        self._near, self._far = near, far or near
        self._is_transposed = bool(getattr(module, "is_transposed", False))
        self._has_zero_experts = bool(getattr(module, "has_zero_experts", False))
        self._sums_in_float32 = type(module).__name__ in _SUM_IN_FLOAT32
        self._inner = _inner_of(module)
        has_norm = getattr(module, "has_post_expert_norm", False)
        self._after: Any = module.post_expert_norm if has_norm else None

    def forward(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sum of the experts of each token, [T, D].

        `hidden` is [T, D], `index` and `weights` [T, K]. A number beyond the experts adds nothing,
        or the input itself where the model has such experts. Raises ExpertReadError,
        InterruptedDecodeError.
        """
        ids = [expert for expert in index.reshape(-1).tolist() if expert < self._n_experts]
        rows = _rows_of(index)
        results: dict[int, Tensor] = {}
        with self._server.serve(self._layer, ids) as served:
            for group in served.passes(FIRST):
                for expert, slot in group.slots.items():
                    inputs = hidden[rows[expert].tokens]
                    results[expert] = self._first(inputs, slot, is_far=group.is_far)
            for group in served.passes(SECOND):
                for expert, slot in group.slots.items():
                    found = self._second(results[expert], slot, is_far=group.is_far)
                    found = found.to(hidden.device)
                    results[expert] = self._after(found) if self._after else found
        for expert, (tokens, _) in rows.items() if self._has_zero_experts else ():
            if expert >= self._n_experts:
                results[expert] = hidden[tokens]
        return self._sum(hidden, weights, rows, results)

    def far_row(self, slot: int) -> Tensor:
        """Return what an expert in host memory makes of some row: to see how long it takes."""
        weight, _ = self._far[FIRST].at(slot)
        width = weight.shape[0 if self._is_transposed else 1]
        row = torch.ones((1, width), dtype=weight.dtype)
        return self._second(self._first(row, slot, is_far=True), slot, is_far=True)

    def _first(self, inputs: Tensor, slot: int, *, is_far: bool) -> Tensor:
        """Return the activations of an expert, [rows, I], where its weights are."""
        if is_far:
            inputs = inputs.cpu()
        part = (self._far if is_far else self._near)[FIRST]
        return self._inner(self._product(inputs, part, slot))

    def _second(self, inner: Tensor, slot: int, *, is_far: bool) -> Tensor:
        part = (self._far if is_far else self._near)[SECOND]
        return self._product(inner, part, slot)

    def _product(self, inputs: Tensor, part: SlotWeights, slot: int) -> Tensor:
        weight, bias = part.at(slot)
        if not self._is_transposed:
            return linear(inputs, weight, bias)
        product = inputs @ weight
        return product if bias is None else product + bias

    def _sum(
        self, hidden: Tensor, weights: Tensor, rows: dict[int, Rows], results: dict[int, Tensor]
    ) -> Tensor:
        dtype = torch.float32 if self._sums_in_float32 else hidden.dtype
        total = torch.zeros_like(hidden, dtype=dtype)
        for expert, (tokens, ranks) in rows.items():
            if expert in results:
                weighted = results[expert] * weights[tokens, ranks, None]
                total.index_add_(0, tokens, weighted.to(dtype))
        return total.to(hidden.dtype)


def _inner_of(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return what lies between the two products of an expert."""
    found: Any = module._apply_gate if getattr(module, "has_gate", True) else module.act_fn
    inner: Callable[[Tensor], Tensor] = found
    return inner


def _rows_of(index: Tensor) -> dict[int, Rows]:
    """Return what each expert is to do, by rising expert number; ranks rise within each."""
    n_tokens = len(index)
    by_rank = index.t().reshape(-1)  # as transformers orders the rows of an expert
    order = torch.argsort(by_rank, stable=True)
    experts, counts = torch.unique_consecutive(by_rank[order], return_counts=True)
    places = torch.split(order, counts.tolist())
    return {
        expert: Rows(place % n_tokens, place // n_tokens)
        for expert, place in zip(experts.tolist(), places, strict=True)
    }
