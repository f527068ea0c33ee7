"""A router as the predictor sees it: what becomes of a hidden state's products with the experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Activation = Literal["softmax", "sigmoid", "none"]
_SMALLEST = np.float32(1e-30)


@dataclass(frozen=True)
class Router:
    """What a layer's router does beside its product; arrays are the model's own.

    The hidden state is divided by its length, multiplied with `norm` [D] and then with the matrix;
    the E results go through the activation. Experts are chosen by that, plus `bias` [E].
    """

    norm: Floats
    activation: Activation
    bias: Floats | None = None

    def scores(self, probabilities: Floats) -> Floats:
        """Undo the activation: float32 [E], up to a number that is the same for all experts."""
        if self.activation == "none":
            return probabilities.copy()
        logs: Floats = np.log(np.maximum(probabilities, _SMALLEST))
        if self.activation == "softmax":
            scores: Floats = logs - logs.mean()
        else:
            scores = logs - np.log(np.maximum(1 - probabilities, _SMALLEST))
        return scores

    def choice(self, scores: Floats) -> Floats:
        """Return by what the experts are ranked; only the order counts."""
        if self.bias is None:
            return scores
        made = scores
        if self.activation == "softmax":
            made = np.exp(scores - scores.max())
            made /= made.sum()
        elif self.activation == "sigmoid":
            made = (1 / (1 + np.exp(-scores))).astype(np.float32)
        return made + self.bias
