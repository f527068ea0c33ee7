"""MoE blocks of transformers that do not ask for an implementation of their experts.

Their modules are put aside, without weights, and others take their places which compute the same
with experts that are served. Whatever is not known here is refused: it would run without us.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

ExpertModules = dict[str, tuple[nn.Module, nn.Module]]
"""By name: the module that asks for experts, and the one whose parameters they are."""


class ServedExperts(nn.Module):
    """Stands where a module of routed experts stood: the same call, no parameters."""

    has_bias = False
    has_post_expert_norm = False
    has_gate = True

    def __init__(
        self, module: nn.Module, *, is_transposed: bool = False, has_zero_experts: bool = False
    ) -> None:
        """`has_zero_experts`: those beyond the ones with weights give back what they are given."""
        super().__init__()
        self.has_zero_experts = has_zero_experts
        self.act_fn: Any = module.act_fn
        self.is_transposed = is_transposed
        self._gate = getattr(module, "_apply_gate", None)
        self._is_hf_initialized = True
        self.localmoe: Any = None
        """The RoutedExperts of this layer."""

    def _apply_gate(self, products: Tensor) -> Tensor:
        if self._gate is not None:
            gated: Tensor = self._gate(products)
            return gated
        gate, up = products.chunk(2, dim=-1)
        inner: Tensor = self.act_fn(gate) * up
        return inner

    def forward(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sum of the experts of each token, [T, D]."""
        total: Tensor = self.localmoe.forward(hidden, index, weights)
        return total


class Llama4Block(nn.Module):
    """Llama 4's block: transformers' own computes every expert for every token, times zero."""

    def __init__(self, block: Any, experts: ServedExperts) -> None:
        super().__init__()
        self.router, self.shared_expert = block.router, block.shared_expert
        self.experts, self._used = experts, block.top_k

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return the block's result, [T, D], and the router's logits."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        scores, logits = self.router(flat)
        weights, index = scores.topk(self._used, dim=1)
        # An expert's input is weighted here, not its result: each choice is a row of its own.
        rows = (flat[:, None] * weights[..., None]).reshape(-1, flat.shape[-1])
        ones = torch.ones_like(index.reshape(-1, 1), dtype=flat.dtype)
        routed = self.experts(rows, index.reshape(-1, 1), ones)
        total = self.shared_expert(flat)
        return total + routed.view(len(flat), self._used, -1).sum(1), logits


def find_experts(model: nn.Module) -> ExpertModules:
    """Find all modules of routed experts, those that ask and those that are replaced here."""
    found: ExpertModules = {}
    for name, module in list(model.named_modules()):
        kind = type(module).__name__
        if hasattr(module, "is_transposed") and hasattr(module, "_is_expert_parallel"):
            found[name] = module, module  # what transformers' own decorator leaves behind
        elif kind == "Llama4TextMoe":
            old: Any = module
            served = ServedExperts(old.experts, is_transposed=True)
            model.set_submodule(name, Llama4Block(old, served))
            found[f"{name}.experts"] = served, old.experts
        elif kind == "LongcatFlashExperts":
            with_zero = ServedExperts(module, has_zero_experts=True)
            model.set_submodule(name, with_zero)
            found[name] = with_zero, module
        elif kind == "Step3p7Experts":
            plain = ServedExperts(module)
            model.set_submodule(name, plain)
            found[name] = plain, module
    return found
