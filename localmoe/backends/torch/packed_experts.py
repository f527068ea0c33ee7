"""The routed experts of one layer for a few tokens: all of them in one launch per part.

What a pair of token and expert gives does not depend on the others, and a token's experts are added
up in the router's order, in float32: so neither does a sum depend on which experts were in memory.
It is another order than that of the loop for many tokens, so the two differ in the last bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from localmoe.backends.torch.expert_products import FIRST, SECOND, ExpertProducts
from localmoe.backends.torch.server import ExpertServer
from localmoe.weights.catalog import MoeLayer


class Kernel(Protocol):
    """Multiplies one part of experts in slots. See `kernels.packed.PackedKernel`."""

    def multiply(self, memory: Tensor, x: Tensor, slots: Tensor, rows: Tensor) -> Tensor:
        """Return the part of slot slots[p] times row rows[p] of x for each p, [P, rows]."""
        ...


Kernels = tuple[Kernel, Kernel]

MOST_PAIRS = 64
"""Of tokens and experts. With more, an expert has many tokens, and is better read once for all."""


class PackedExperts:
    """Multiplies experts as they lie in slots of the device."""

    def __init__(
        self,
        layer: MoeLayer,
        server: ExpertServer,
        memory: Tensor,
        products: ExpertProducts,
        kernels: Kernels,
    ) -> None:
        self._layer, self._server, self._memory = layer, server, memory
        self._products, self._kernels = products, kernels

    def takes(self, index: Tensor) -> bool:
        """Whether this is a step of few tokens; index [T, K]."""
        return index.numel() <= MOST_PAIRS

    def forward(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """See RoutedExperts."""
        n_tokens, used = index.shape
        hidden = hidden.contiguous()
        table = self._server.table(self._layer.layer)
        if table is None:
            results = self._served(hidden, index.reshape(-1).tolist(), used)
        else:  # nobody is asked, so the device need not be waited for
            slots = table[index.reshape(-1)]
            rows = torch.arange(len(slots), device=hidden.device, dtype=torch.int32)
            results = self._second(self._first(hidden, slots, rows // used), slots, rows)
            self._server.found_in_table(len(slots))
        if self._products.after:
            results = self._products.after(results)
        weighted = results.view(n_tokens, used, -1) * weights[..., None]
        return weighted.sum(1, dtype=torch.float32).to(hidden.dtype)

    def _served(self, hidden: Tensor, chosen: list[int], used: int) -> Tensor:
        """Return what each pair gives, [P, D], as its expert comes."""
        ids = [expert for expert in chosen if expert < self._layer.n_experts]
        activations = _Pairs(chosen, hidden.device)
        results = _Pairs(chosen, hidden.device)
        with self._server.serve(self._layer.layer, ids) as served:
            for group in served.passes(FIRST):
                pairs = activations.of(group.slots)
                rows = [pair // used for pair in pairs]
                slots = [group.slots[chosen[pair]] for pair in pairs]
                activations.put(pairs, self._compute(FIRST, hidden, slots, rows, group.is_far))
            inner = activations.whole()
            for group in served.passes(SECOND):
                pairs = results.of(group.slots)
                slots = [group.slots[chosen[pair]] for pair in pairs]
                results.put(pairs, self._compute(SECOND, inner, slots, pairs, group.is_far))
        beyond = [pair for pair, expert in enumerate(chosen) if expert >= self._layer.n_experts]
        if beyond:
            results.put(beyond, torch.zeros_like(hidden[[0] * len(beyond)]))
        return results.whole()

    def _compute(
        self, part: int, inputs: Tensor, slots: list[int], rows: list[int], is_far: bool
    ) -> Tensor:
        """Return one part of some pairs: the expert in each slot, times its row of the inputs."""
        if is_far:
            compute = self._products.second if part == SECOND else self._products.first
            found = [
                compute(inputs[[row]].cpu(), slot, is_far=True)
                for row, slot in zip(rows, slots, strict=True)
            ]
            return torch.cat(found).to(inputs.device)
        compute_all = self._second if part == SECOND else self._first
        return compute_all(inputs, self._numbers(slots), self._numbers(rows))

    def _first(self, inputs: Tensor, slots: Tensor, rows: Tensor) -> Tensor:
        found = self._kernels[FIRST].multiply(self._memory, inputs, slots, rows)
        activations: Tensor = self._products.inner(found)
        return activations

    def _second(self, inputs: Tensor, slots: Tensor, rows: Tensor) -> Tensor:
        return self._kernels[SECOND].multiply(self._memory, inputs, slots, rows)

    def _numbers(self, values: Iterable[int]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.int32).to(self._memory.device)


class _Pairs:
    """Rows for pairs of tokens and experts, which come in groups."""

    def __init__(self, chosen: list[int], device: torch.device) -> None:
        """`chosen`: the expert of each pair."""
        self._count, self._device = len(chosen), device
        self._of: dict[int, list[int]] = {}
        for pair, expert in enumerate(chosen):
            self._of.setdefault(expert, []).append(pair)
        self._rows: Tensor | None = None

    def of(self, experts: Iterable[int]) -> list[int]:
        """Return the pairs of some experts, rising."""
        return sorted(pair for expert in experts for pair in self._of[expert])

    def put(self, pairs: list[int], rows: Tensor) -> None:
        """Take the rows of some pairs; usually these are all of them."""
        if len(pairs) == self._count:
            self._rows = rows
            return
        if self._rows is None:
            self._rows = rows.new_zeros((self._count, *rows.shape[1:]))
        self._rows[torch.tensor(pairs, device=self._device)] = rows

    def whole(self) -> Tensor:
        """Return the rows of all pairs."""
        assert self._rows is not None  # every expert comes, or an error is raised
        return self._rows
