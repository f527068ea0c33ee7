"""What mlx-lm alone computes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

Logits = npt.NDArray[np.float32]


def stock(folder: Path) -> Any:
    """Return a checkpoint's model, all of it in memory."""
    model, _ = load_model(folder)
    return model


def new_cache(model: Any) -> Any:
    """Return mlx-lm's cache for a model, empty."""
    return make_prompt_cache(model)


def plain_logits(model: Any, prompts: Sequence[Sequence[int]], n_decoded: int) -> Logits:
    """Return all logits of prompts one after the other, then of likeliest tokens, [n, V]."""
    cache = new_cache(model)
    found = []
    for tokens in prompts:
        found.append(step(model, tokens, cache))
    for _ in range(n_decoded):
        found.append(step(model, [int(found[-1][-1].argmax())], cache))
    return np.concatenate(found)


def step(model: Any, tokens: Sequence[int], cache: Any) -> Logits:
    """Return all logits of some tokens more, [T, V]."""
    logits = model(mx.array([list(tokens)]), cache=cache)[0].astype(mx.float32)
    mx.eval(logits)
    return np.array(logits)
