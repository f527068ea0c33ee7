"""From logits to the next token.

The filters run in llama.cpp's order: top-k, top-p, min-p, and temperature last. So top-p and min-p
judge the model's own probabilities, and a high temperature never lets unlikely tokens back in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from localmoe.backends.base import FloatArray
from localmoe.errors import EngineError, SettingsError

TokenIds = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen. `temperature` 0 always takes the likeliest token."""

    temperature: float = 0.8
    top_k: int = 40
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 0.95
    """Keep the likeliest tokens that together reach this probability; 1 keeps all."""
    min_p: float = 0.05
    """Drop tokens below this share of the likeliest token's probability; 0 keeps all."""
    seed: int | None = None
    """The same seed gives the same choices; None draws a new one."""

    def __post_init__(self) -> None:
        _require(
            math.isfinite(self.temperature) and 0 <= self.temperature <= 100,
            f"temperature must be between 0 and 100, not {self.temperature}",
        )
        _require(self.top_k >= 0, f"top-k must be 0 (off) or more, not {self.top_k}")
        _require(0 < self.top_p <= 1, f"top-p must be above 0 and at most 1, not {self.top_p}")
        _require(0 <= self.min_p <= 1, f"min-p must be between 0 and 1, not {self.min_p}")
        _require(self.seed is None or self.seed >= 0, f"seed must be 0 or more, not {self.seed}")

    @classmethod
    def merged(
        cls, flags: Mapping[str, float | None], checkpoint: Mapping[str, float]
    ) -> SamplingOptions:
        """Return options: a flag wins over the checkpoint's value, which wins over the default.

        A flag of None counts as not given. Raises SettingsError.
        """
        given = {name: value for name, value in flags.items() if value is not None}
        options = cls()
        for name in ("temperature", "top_k", "top_p", "min_p"):
            if name in checkpoint and name not in given:
                try:
                    options = options._with(name, checkpoint[name])
                except SettingsError as error:
                    raise SettingsError(
                        f"the model file asks for sampling that cannot be done: {error}. "
                        f"Give --{name.replace('_', '-')} to override it"
                    ) from error
        for name, value in given.items():
            options = options._with(name, value)
        return options

    def _with(self, name: str, value: float) -> SamplingOptions:
        if not math.isfinite(value):
            raise SettingsError(f"{name.replace('_', '-')} must be a number, not {value}")
        whole = name in ("top_k", "seed")
        changed: dict[str, Any] = {name: int(value) if whole else float(value)}
        return replace(self, **changed)


class Sampler:
    """Chooses tokens; with a seed, the same logits in the same order give the same tokens."""

    def __init__(self, options: SamplingOptions | None = None) -> None:
        self.options = options or SamplingOptions()
        self._random = np.random.default_rng(self.options.seed)

    def choose(self, logits: FloatArray) -> int:
        """Return a token id for logits [V]. Raises EngineError when no logit is a number."""
        best = int(np.argmax(logits))
        if not math.isfinite(logits[best]):
            raise EngineError(
                f"the model's logits hold {logits[best]} where numbers were expected: "
                "the model file is damaged or its quantization is not supported"
            )
        if self.options.temperature == 0 or self.options.top_k == 1:
            return best
        tokens, chances = self.candidates(logits)
        drawn = int(np.searchsorted(np.cumsum(chances), self._random.random(), side="right"))
        # The sum may end a rounding error below 1.
        return int(tokens[min(drawn, len(tokens) - 1)])

    def candidates(self, logits: FloatArray) -> tuple[TokenIds, npt.NDArray[np.float64]]:
        """Return the tokens that may be chosen, likeliest first, and their probabilities.

        Needs a temperature above 0. Both arrays are [n], the probabilities sum to 1.
        """
        tokens, scores = _likeliest(logits, self.options.top_k)
        chances = _softmax(scores)
        keep = len(tokens)
        if self.options.top_p < 1:
            keep = int(np.searchsorted(np.cumsum(chances), self.options.top_p)) + 1
        if self.options.min_p > 0:
            floor = chances[0] * self.options.min_p
            keep = min(keep, int(np.count_nonzero(chances >= floor)))
        keep = max(keep, 1)
        return tokens[:keep], _softmax(scores[:keep], self.options.temperature)


def _likeliest(logits: FloatArray, top_k: int) -> tuple[TokenIds, npt.NDArray[np.float64]]:
    """Return token ids and logits, highest first; equal logits in the order of their ids."""
    scores = logits.astype(np.float64)
    tokens = np.arange(len(scores))
    if 0 < top_k < len(scores):
        threshold = np.partition(scores, -top_k)[-top_k]
        tokens = np.flatnonzero(scores >= threshold)
    order = np.argsort(-scores[tokens], kind="stable")
    if top_k > 0:
        order = order[:top_k]
    tokens = tokens[order].astype(np.int64)
    return tokens, scores[tokens]


def _softmax(scores: npt.NDArray[np.float64], temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """Return probabilities; `scores` come highest first."""
    # At a temperature near 0 all but the first may become -inf, which is right.
    with np.errstate(over="ignore"):
        scaled = (scores - scores[0]) / temperature
    weights: npt.NDArray[np.float64] = np.exp(scaled)
    weights /= weights.sum()
    return weights


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise SettingsError(message)
