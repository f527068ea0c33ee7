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

FIRST, SECOND = 0, 1
"""The parts of an expert: what leads to the activation, and what leads back."""


class Rows(NamedTuple):
    """What one expert is to do: these tokens, as the choice of this rank of each."""

    tokens: Tensor
    ranks: Tensor


class RoutedExperts:
    """Stands behind a module of routed experts whose weights were taken out."""

    def __init__(
        self, layer: int, module: nn.Module, server: ExpertServer, parts: tuple[SlotWeights, ...]
    ) -> None:
        self.layer, self._server = layer, server
        self._first, self._second = parts
        self._is_transposed = bool(getattr(module, "is_transposed", False))
        self._inner = _inner_of(module)
        self._after: Callable[[Tensor], Tensor] | None = None
        if getattr(module, "has_post_expert_norm", False):
            self._after = module.post_expert_norm

    def forward(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sum of the experts of each token, [T, D].

        `hidden` is [T, D], `index` and `weights` [T, K]. Raises ExpertReadError,
        InterruptedDecodeError.
        """
        ids = index.reshape(-1).tolist()
        rows = _rows_of(ids, index)
        results: dict[int, Tensor] = {}
        with self._server.serve(self.layer, ids) as served:
            for group in served.passes(FIRST):
                for expert, slot in group.items():
                    inputs = hidden if len(ids) == 1 else hidden[rows[expert].tokens]
                    results[expert] = self._inner(self._product(inputs, self._first, slot))
            for group in served.passes(SECOND):
                for expert, slot in group.items():
                    found = self._product(results[expert], self._second, slot)
                    results[expert] = self._after(found) if self._after else found
        return _sum(hidden, weights, rows, results)

    def _product(self, inputs: Tensor, part: SlotWeights, slot: int) -> Tensor:
        weight, bias = part.at(slot)
        if not self._is_transposed:
            return linear(inputs, weight, bias)
        product = inputs @ weight
        return product if bias is None else product + bias


def _inner_of(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return what lies between the two products of an expert."""
    found: Any = module._apply_gate if getattr(module, "has_gate", True) else module.act_fn
    inner: Callable[[Tensor], Tensor] = found
    return inner


def _rows_of(ids: list[int], index: Tensor) -> dict[int, Rows]:
    """Return what each expert is to do, by rising expert number; tokens rise within each."""
    used = index.shape[-1]
    if len(ids) == used:
        zero = torch.zeros(1, dtype=torch.long, device=index.device)
        ranks = {expert: rank for rank, expert in enumerate(ids)}
        if len(ranks) == used:
            return {
                e: Rows(zero, torch.tensor([ranks[e]], device=index.device)) for e in sorted(ranks)
            }
    order = torch.argsort(index.reshape(-1), stable=True)
    experts, counts = index.reshape(-1)[order].unique_consecutive(return_counts=True)
    places = order.split(counts.tolist())
    return {
        expert: Rows(place // used, place % used)
        for expert, place in zip(experts.tolist(), places, strict=True)
    }


def _sum(
    hidden: Tensor, weights: Tensor, rows: dict[int, Rows], results: dict[int, Tensor]
) -> Tensor:
    total = torch.zeros_like(hidden)
    for expert, (tokens, ranks) in rows.items():
        weighted = results[expert] * weights[tokens, ranks, None]
        total.index_add_(0, tokens, weighted.to(total.dtype))
    return total
