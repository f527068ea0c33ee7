"""What a run routed to, and what was guessed before: the material that predictors are scored on."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from localmoe.errors import ModelFormatError, ModelNotFoundError

Numbers = npt.NDArray[np.int32]
NO_GUESS = -1


@dataclass(frozen=True)
class Trace:
    """T tokens through L MoE layers of E experts each, K of which each token uses."""

    layers: tuple[int, ...]
    n_experts: int
    routing: Numbers
    """[T, L, K]"""
    guesses: Mapping[str, Numbers] = field(default_factory=dict)
    """By predictor: [T, L, M] experts, the surest first, or NO_GUESS."""

    @property
    def n_experts_used(self) -> int:
        """K."""
        return int(self.routing.shape[2])

    def chosen(self) -> npt.NDArray[np.bool_]:
        """Return the routing as a table, [T, L, E]."""
        table = np.zeros((*self.routing.shape[:2], self.n_experts), bool)
        np.put_along_axis(table, self.routing.astype(np.int64), True, axis=2)
        return table


def read_trace(path: Path) -> Trace:
    """Read a recorded `routing` [T, L, K] and `layers` [L] from an .npz file.

    Raises ModelNotFoundError, ModelFormatError.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            routing, layers = arrays["routing"], arrays["layers"]
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"there is no file {path}") from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ModelFormatError(
            f"{path} is no trace: it needs the arrays routing [T, L, K] and layers [L] ({error})"
        ) from error
    fits = routing.ndim == 3 and layers.shape == routing.shape[1:2] and routing.size
    if not fits or routing.dtype.kind not in "iu" or routing.min() < 0:
        raise ModelFormatError(
            f"{path}: routing has the shape {routing.shape} and layers {layers.shape}; wanted are "
            "expert numbers [T, L, K] and layer numbers [L]"
        )
    routing = routing.astype(np.int32)
    return Trace(tuple(int(n) for n in layers), int(routing.max()) + 1, routing)


def with_history(trace: Trace, count: int) -> Trace:
    """Add the predictors that need no hidden state, `count` guesses each.

    `previous_token`: what the token before used in this layer, then by frequency. `frequency`: what
    the layer has used most so far.
    """
    chosen = trace.chosen()
    seen = np.cumsum(chosen, axis=0).astype(np.float64) - chosen
    before = np.zeros_like(chosen)
    before[1:] = chosen[:-1]
    weights = {"previous_token": before + seen / (1 + len(chosen)), "frequency": seen}
    guesses = {name: _best(weight, count) for name, weight in weights.items()}
    for guessed in guesses.values():
        guessed[0] = NO_GUESS
    return Trace(trace.layers, trace.n_experts, trace.routing, {**trace.guesses, **guesses})


def _best(weights: npt.NDArray[np.float64], count: int) -> Numbers:
    order = np.argsort(-weights, axis=2, kind="stable")
    return order[:, :, :count].astype(np.int32)
