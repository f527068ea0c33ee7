"""Random weights with which routing, experts and every bias make a difference."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

_VECTOR_NOISE = 0.05


@torch.no_grad()
def randomize(model: nn.Module, n_experts: int, gains: Mapping[str, float], seed: int) -> None:
    """Give every weight that is saved a new value, the same for the same seed and any dtype.

    Matrices keep the scale of what goes through them. Vectors (norms, biases, decays) stay near
    what the model's own initialization says: some of them must not change their sign. Tables of
    experts by token get experts. `gains` are factors for the weights whose name has such a part.
    """
    generator = torch.Generator().manual_seed(seed)
    tables = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Embedding)}
    computed = {name for name, _ in model.named_buffers() if "bias" not in name}
    for name, weight in model.state_dict().items():
        if weight.is_floating_point() and name in computed:  # masks and decays
            continue
        if not weight.is_floating_point():
            weight.random_(n_experts, generator=generator)
            continue
        noise = torch.randn(weight.shape, generator=generator)
        gain = math.prod(factor for part, factor in gains.items() if part in name)
        # As large as what layers add to it, so that a token remains itself behind attention.
        weight.copy_(noise if name in tables else gain * _scaled(noise, weight))


def _scaled(noise: Tensor, weight: Tensor) -> Tensor:
    if weight.squeeze().ndim < 2:
        return weight.float() + _VECTOR_NOISE * noise
    return noise / math.sqrt(weight.shape[-1])
