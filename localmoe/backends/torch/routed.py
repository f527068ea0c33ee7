"""The routed experts of one layer, computed as they come, and added up in an order of its own.

Every row of every expert is the same product whenever it is computed, and rows are added up by
rising expert number as transformers' own loop does: which experts were in memory changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from localmoe.backends.torch.expert_products import FIRST, SECOND, ExpertProducts
from localmoe.backends.torch.packed_experts import PackedExperts
from localmoe.backends.torch.server import ExpertServer
from localmoe.weights.catalog import MoeLayer

_SUM_IN_FLOAT32 = frozenset({"NemotronHExperts", "Inkling2Experts"})
"""Modules of transformers that add experts up in another type than that of the model."""


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
        products: ExpertProducts,
        packed: PackedExperts | None = None,
    ) -> None:
        """`packed` computes steps of few tokens; without it they are computed as all others."""
        self._layer, self._n_experts, self._server = layer.layer, layer.n_experts, server
        self._products, self._packed = products, packed
        self._has_zero_experts = bool(getattr(module, "has_zero_experts", False))
        self._sums_in_float32 = type(module).__name__ in _SUM_IN_FLOAT32

    def forward(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sum of the experts of each token, [T, D].

        `hidden` is [T, D], `index` and `weights` [T, K]. A number beyond the experts adds nothing,
        or the input itself where the model has such experts. Raises ExpertReadError,
        InterruptedDecodeError.
        """
        if self._packed and self._packed.takes(index):
            return self._packed.forward(hidden, index, weights)
        first, second, after = self._products.first, self._products.second, self._products.after
        ids = [expert for expert in index.reshape(-1).tolist() if expert < self._n_experts]
        rows = _rows_of(index)
        results: dict[int, Tensor] = {}
        with self._server.serve(self._layer, ids) as served:
            for group in served.passes(FIRST):
                for expert, slot in group.slots.items():
                    inputs = hidden[rows[expert].tokens]
                    results[expert] = first(inputs, slot, is_far=group.is_far)
            for group in served.passes(SECOND):
                for expert, slot in group.slots.items():
                    found = second(results[expert], slot, is_far=group.is_far).to(hidden.device)
                    results[expert] = after(found) if after else found
        for expert, (tokens, _) in rows.items() if self._has_zero_experts else ():
            if expert >= self._n_experts:
                results[expert] = hidden[tokens]
        return self._sum(hidden, weights, rows, results)

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
