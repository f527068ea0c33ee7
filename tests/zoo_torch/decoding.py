"""The logits of a model for a prompt and what it would say next."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


@torch.inference_mode()
def logits_of(model: nn.Module, tokens: list[int], n_decoded: int, chunk: int = 0) -> Tensor:
    """Return all logits, [len(tokens) + n_decoded, V], in the model's dtype.

    The prompt goes in as one step, or in steps of `chunk` tokens; then one greedy token at a time,
    all with the model's own cache.
    """
    longest = chunk or len(tokens)
    sizes = [min(longest, len(tokens) - n) for n in range(0, len(tokens), longest)]
    steps = torch.tensor([tokens]).split_with_sizes(sizes, dim=1)
    cache: Any = None
    rows: list[Tensor] = []
    for n in range(len(steps) + n_decoded):
        step = steps[n] if n < len(steps) else rows[-1][-1:].argmax(-1)[None]
        out = model(step, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        rows.append(out.logits[0])
    return torch.cat(rows)
