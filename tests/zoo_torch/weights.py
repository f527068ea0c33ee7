"""Random weights with which routing, experts and every bias make a difference."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_VECTOR_NOISE = 0.1


@torch.no_grad()
def randomize(model: nn.Module, n_experts: int, seed: int) -> None:
    """Give every weight that is saved a new value, the same for the same seed and any dtype.

    Matrices keep the scale of what goes through them. Vectors (norms, biases, decays) stay near what
    the model's own initialization says: some of them must not change their sign. Tables of experts
    by token get experts.
    """
    generator = torch.Generator().manual_seed(seed)
    for weight in model.state_dict().values():
        if not weight.is_floating_point():
            weight.random_(n_experts, generator=generator)
            continue
        noise = torch.randn(weight.shape, generator=generator)
        weight.copy_(_scaled(noise, weight))


def _scaled(noise: Tensor, weight: Tensor) -> Tensor:
    if weight.ndim < 2:
        return weight.float() + _VECTOR_NOISE * noise
    return noise * weight.shape[-1] ** -0.5
