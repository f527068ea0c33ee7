"""Whether a cache can go back to an earlier token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


@torch.inference_mode()
def logits_behind_crop(
    model: nn.Module, tokens: list[int], n_kept: int, *, recorded: bool, detour: bool
) -> Tensor:
    """Return the last token's logits [V] when everything behind `n_kept` tokens came one by one.

    With `detour` all tokens are read first and all but `n_kept` taken back, which should make no
    difference. `recorded` has the cache keep what it would drop. Raises what transformers raises
    where it cannot.
    """
    whole = torch.tensor([tokens])
    read = len(tokens) if detour else n_kept
    # The layers of a cache are there after the first step.
    cache: Any = model(whole[:, :1], use_cache=True).past_key_values
    if recorded:
        cache.activate_past_recording()
    model(whole[:, 1:read], past_key_values=cache, use_cache=True)
    if detour:
        cache.crop(n_kept - read)
    for n in range(n_kept, len(tokens)):
        logits: Tensor = model(whole[:, n : n + 1], past_key_values=cache, use_cache=True).logits[
            0, -1
        ]
    return logits
