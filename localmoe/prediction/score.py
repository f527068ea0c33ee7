"""How good guesses were: by rank, by layer, and where it counts, among experts not in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from localmoe.prediction.trace import NO_GUESS, RANKS_BEYOND, Numbers, Trace, with_history

Table = npt.NDArray[np.bool_]
_SHARES = (0.25, 0.5, 0.75)
"""Sizes of caches that misses are counted for, as shares of all experts."""
_WARM_UP_SHARE = 4
"""One part in so many of a trace fills caches and teaches predictors: it is not scored."""


@dataclass(frozen=True)
class CacheScore:
    """Guesses against the misses of a cache of `slots` experts that keeps the most recent ones."""

    slots: int
    hit_rate: float
    misses_per_token: float
    misses_named: float
    """Share of the misses that were among the K surest guesses."""
    wrong_reads_per_token: float
    """Of the K surest guesses, how many were neither in memory nor used."""


@dataclass(frozen=True)
class Score:
    """Of one predictor. Shares are of what was scored: layers without guesses count as missed."""

    rank_precision: tuple[float, ...]
    """By rank, the surest first: share of the guesses that came true."""
    rank_recall: tuple[float, ...]
    """By rank: share of the chosen experts that were named so far."""
    layer_recall: tuple[float, ...]
    """By layer: share of the chosen experts that were among the K surest guesses."""
    recall: float
    """The same over all layers."""
    caches: tuple[CacheScore, ...]


class Scorer:
    """Scores the predictors of a trace. Simulates each cache once."""

    def __init__(self, trace: Trace, slots: Sequence[int]) -> None:
        self._trace, self._first = trace, warm_up_tokens(trace)
        self._chosen = trace.chosen()
        self._held = {count: held_before(trace, count) for count in slots}

    @property
    def scored_tokens(self) -> int:
        """How many tokens count, after the warm-up."""
        return len(self._trace.routing) - self._first

    def score(self, name: str) -> Score:
        """Score one of the trace's predictors."""
        guesses, used = self._trace.guesses[name], self._trace.n_experts_used
        true = _at(self._chosen, guesses)[self._first :]
        made = (guesses != NO_GUESS)[self._first :]
        n_chosen = self._chosen[self._first :].sum((0, 2))
        by_rank = true.sum((0, 1))
        by_layer = true[:, :, :used].sum((0, 2))
        return Score(
            rank_precision=_floats(by_rank / np.maximum(made.sum((0, 1)), 1)),
            rank_recall=_floats(np.cumsum(by_rank) / n_chosen.sum()),
            layer_recall=_floats(by_layer / n_chosen),
            recall=float(by_layer.sum() / n_chosen.sum()),
            caches=tuple(self._against(count, guesses[:, :, :used]) for count in self._held),
        )

    def _against(self, slots: int, guesses: Numbers) -> CacheScore:
        held, tokens = self._held[slots], self.scored_tokens
        missed = (self._chosen & ~held)[self._first :]
        absent = (~_at(held, guesses) & (guesses != NO_GUESS))[self._first :]
        true = _at(self._chosen, guesses)[self._first :]
        n_missed = int(missed.sum())
        n_chosen = int(self._chosen[self._first :].sum())
        return CacheScore(
            slots=slots,
            hit_rate=1 - n_missed / n_chosen,
            misses_per_token=n_missed / tokens,
            misses_named=int((absent & true).sum()) / n_missed if n_missed else 0.0,
            wrong_reads_per_token=int((absent & ~true).sum()) / tokens,
        )


def warm_up_tokens(trace: Trace) -> int:
    """Return how many tokens are not scored: they fill caches and teach predictors."""
    return trace.n_tokens // _WARM_UP_SHARE


def score_history(trace: Trace) -> tuple[Trace, dict[str, dict[str, Any]]]:
    """Add the predictors that need no hidden state; return that trace, and all scores as JSON."""
    guessed = with_history(trace, trace.n_experts_used + RANKS_BEYOND)
    slots = [int(share * trace.n_experts_total) for share in _SHARES]
    scorer = Scorer(guessed, slots)
    return guessed, {name: asdict(scorer.score(name)) for name in guessed.guesses}


def held_before(trace: Trace, slots: int) -> Table:
    """Say what a cache over all layers holds when each layer is routed, [T, L, E].

    It keeps the `slots` experts that were used last.
    """
    recent: OrderedDict[tuple[int, int], None] = OrderedDict()
    now = np.zeros((len(trace.layers), trace.n_experts), bool)
    table = np.zeros((len(trace.routing), *now.shape), bool)
    for token, layers in enumerate(trace.routing.tolist()):
        for layer, experts in enumerate(layers):
            table[token, layer] = now[layer]
            for expert in experts:
                key = layer, expert
                recent[key] = None
                recent.move_to_end(key)
                now[key] = True
            while len(recent) > slots:
                oldest, _ = recent.popitem(last=False)
                now[oldest] = False
    return table


def _at(table: Table, guesses: Numbers) -> Table:
    """Look guesses [T, L, M] up in a table [T, L, E]; False where there is none."""
    found = np.take_along_axis(table, np.maximum(guesses, 0).astype(np.int64), axis=2)
    named: Table = found & (guesses != NO_GUESS)
    return named


def _floats(values: npt.NDArray[np.floating]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
