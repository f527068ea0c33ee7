"""Writes down what each layer routes to, and what its router would have been guessed to do."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from localmoe.backends.llama.kernels import Kernels
from localmoe.backends.llama.routers import Routers, Routing
from localmoe.prediction.guesses import Guess, Guesses
from localmoe.prediction.trace import NO_GUESS, Floats, Numbers, Trace
from localmoe.weights.catalog import MoeLayer

Number = TypeVar("Number", int, float)
PREDICTORS = {"next_layer": 1, "layer_after_next": 2}
"""Names of the router's predictors, and of how many MoE layers they look ahead."""


class RoutingLog:
    """A watch of the hook's. Notes single tokens only; close it."""

    def __init__(
        self,
        layers: Mapping[int, MoeLayer],
        threads: int,
        *,
        guesses: bool = True,
        scores: bool = False,
    ) -> None:
        """`guesses` and `scores` say what is noted beside the experts."""
        self._layers = tuple(sorted(layers))
        self._used = max(layer.n_experts_used for layer in layers.values())
        self._n_experts = max(layer.n_experts for layer in layers.values())
        self._kernels = Kernels(threads)
        self._routers = Routers(self._kernels)
        self._guesses = {
            name: Guesses(self._layers, self._used, self._routers.product)
            for name in PREDICTORS
            if guesses
        }
        self._scores: list[dict[int, list[float]]] | None = [] if scores else None
        self._open: dict[tuple[str, int], tuple[int, Guess]] = {}
        self._rows: list[dict[int, list[int]]] = []
        self._guessed: dict[str, list[dict[int, tuple[int, ...]]]] = {n: [] for n in self._guesses}
        self.unknown_layers: set[int] = set()
        """Layers whose router has a form that is not recognised: nothing is guessed from them."""
        self.guesses = 0
        self.seconds = 0.0
        """Time that all guesses took, and learning from them."""

    @property
    def count(self) -> int:
        """How many guesses one prediction ranks."""
        return max(guesses.count for guesses in self._guesses.values())

    def watch(self, node: int, layer: int, experts: Sequence[int]) -> None:
        """Note one routing; see `Hook.watch`."""
        if not 0 < len(experts) <= self._used:
            return  # several tokens, or none: without logits the last layer is left out
        if layer == self._layers[0]:
            self._rows.append({})
            self._open.clear()
            for rows in self._guessed.values():
                rows.append({})
            if self._scores is not None:
                self._scores.append({})
        self._rows[-1][layer] = list(experts)
        if not self._guesses and self._scores is None:
            return
        began = time.perf_counter()
        routing = self._routers.read(node, layer)
        if routing is None:
            self.unknown_layers.add(layer)
            return
        if self._scores is not None:
            self._scores[-1][layer] = routing.probabilities[list(experts)].tolist()
        for name, guesses in self._guesses.items():
            self._guess(name, guesses, layer, routing)
        self.seconds += time.perf_counter() - began

    def _guess(self, name: str, guesses: Guesses, layer: int, routing: Routing) -> None:
        if not guesses.knows(layer):
            guesses.add(layer, routing.router)
        told = self._open.pop((name, layer), None)
        if told:
            guesses.learn(*told, routing.probabilities)
        later = guesses.target(layer, PREDICTORS[name])
        if later is not None:
            guess = guesses.guess(layer, later, routing.state)
            self.guesses += 1
            self._open[name, later] = layer, guess
            self._guessed[name][-1][later] = guess.experts

    def trace(self) -> Trace:
        """Return what was noted of the tokens that went through all layers."""
        whole = [i for i, row in enumerate(self._rows) if len(row) == len(self._layers)]
        routing = np.full((len(whole), len(self._layers), self._used), 0, np.int32)
        for at, token in enumerate(whole):
            for place, layer in enumerate(self._layers):
                routing[at, place] = self._filled(self._rows[token][layer])
        guesses = {name: self._table(rows, whole) for name, rows in self._guessed.items()}
        scores = self._score_table(whole)
        return Trace(self._layers, self._n_experts, routing, guesses, scores)

    def drain(self) -> Trace:
        """Return what was noted since the last time, and forget it."""
        trace = self.trace()
        self._rows = []
        self._guessed = {name: [] for name in self._guessed}
        self._scores = None if self._scores is None else []
        return trace

    def _filled(self, values: list[Number]) -> list[Number]:
        """Fill a layer that uses fewer up with its last one, which names no other expert."""
        return (values + values[-1:] * self._used)[: self._used]

    def _score_table(self, whole: list[int]) -> Floats | None:
        if self._scores is None:
            return None
        table = np.full((len(whole), len(self._layers), self._used), np.nan, np.float32)
        for at, token in enumerate(whole):
            for place, layer in enumerate(self._layers):
                if layer in self._scores[token]:
                    table[at, place] = self._filled(self._scores[token][layer])
        return table

    def _table(self, rows: list[dict[int, tuple[int, ...]]], whole: list[int]) -> Numbers:
        table = np.full((len(whole), len(self._layers), self.count), NO_GUESS, np.int32)
        for at, token in enumerate(whole):
            for place, layer in enumerate(self._layers):
                experts = rows[token].get(layer, ())
                table[at, place, : len(experts)] = experts
        return table

    def close(self) -> None:
        """Free what guesses were computed with."""
        self._kernels.close()
