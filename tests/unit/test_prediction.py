"""Guessing from routers, and scoring of guesses: on numbers made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from localmoe.errors import ModelFormatError, ModelNotFoundError
from localmoe.prediction.guesses import Guesses
from localmoe.prediction.router import Activation, Floats, Router
from localmoe.prediction.score import Scorer, held_before
from localmoe.prediction.trace import NO_GUESS, Trace, with_history
from localmoe.prediction.trace_reader import read_trace

E, D, K = 16, 8, 3


def softmax(scores: Floats) -> Floats:
    exponents = np.exp(scores - scores.max())
    shares: Floats = exponents / exponents.sum()
    return shares


class Model:
    """Two layers: the second one's state is the first one's, moved by something constant."""

    def __init__(self) -> None:
        rng = np.random.default_rng(5)
        self.rng = rng
        self.matrix = rng.normal(size=(E, D)).astype(np.float32)
        self.norms = {n: rng.uniform(0.5, 2, D).astype(np.float32) for n in (1, 3)}
        self.moved = rng.normal(size=D).astype(np.float32)

    def token(self) -> tuple[Floats, Floats]:
        """Return the first layer's normed state, and what the second one's router makes of it."""
        plain = self.rng.normal(size=D).astype(np.float32)
        scores = self.matrix @ ((plain + self.moved) * self.norms[3])
        return plain * self.norms[1], softmax(scores)


def test_the_average_error_of_guesses_is_learned() -> None:
    model = Model()
    guesses = Guesses([1, 3], K, lambda _layer, state: model.matrix @ state)
    for layer, norm in model.norms.items():
        guesses.add(layer, Router(norm, "softmax"))
    right = []
    for _ in range(60):
        state, probabilities = model.token()
        guess = guesses.guess(1, 3, state)
        truth = set(np.argsort(-probabilities)[:K].tolist())
        right.append(len(truth & set(guess.experts[:K])) / K)
        guesses.learn(1, guess, probabilities)
    assert np.mean(right[:10]) < np.mean(right[-20:])
    assert np.mean(right[-20:]) == 1.0


def test_only_layers_that_were_seen_are_guessed_about() -> None:
    guesses = Guesses([1, 3, 4], K, lambda _layer, state: state)
    assert guesses.target(1, 1) is None
    guesses.add(3, Router(np.ones(D, np.float32), "none"))
    assert (guesses.target(1, 1), guesses.target(1, 2), guesses.target(4, 1)) == (3, None, None)


def test_dimensions_that_a_norm_erases_do_not_spoil_a_guess() -> None:
    erased = np.ones(D, np.float32)
    erased[2] = 0
    guesses = Guesses([0, 1], K, lambda _layer, state: state)
    guesses.add(0, Router(erased, "none"))
    guesses.add(1, Router(np.full(D, 2, np.float32), "none"))
    guess = guesses.guess(0, 1, np.arange(D, dtype=np.float32))
    assert np.isfinite(guess.scores).all()
    assert guess.experts[:3] == (7, 6, 5)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
def test_scores_undo_the_activation_and_the_bias_counts_for_the_choice(
    activation: Activation,
) -> None:
    scores = np.array([0.5, -1, 2, 0], np.float32)
    by_name: dict[str, Floats] = {
        "softmax": softmax(scores),
        "sigmoid": (1 / (1 + np.exp(-scores))).astype(np.float32),
        "none": scores,
    }
    made = by_name[activation]
    undone = Router(np.ones(4, np.float32), activation).scores(made)
    assert undone - undone.mean() == pytest.approx(scores - scores.mean(), abs=1e-5)
    bias = np.array([0, 9, 0, 0], np.float32)
    biased = Router(np.ones(4, np.float32), activation, bias)
    assert biased.choice(scores) == pytest.approx(made + bias, abs=1e-6)


def trace_of(routing: list[list[list[int]]], guesses: list[list[list[int]]]) -> Trace:
    table = np.array(routing, np.int32)
    layers = tuple(range(table.shape[1]))
    return Trace(layers, 4, table, {"told": np.array(guesses, np.int32)})


def test_scores_count_ranks_layers_and_misses() -> None:
    # One layer, two of four experts a token; the first of four tokens is the warm-up.
    trace = trace_of(
        [[[0, 1]], [[0, 1]], [[2, 3]], [[0, 2]]],
        [[[NO_GUESS] * 3], [[0, 2, 1]], [[3, 1, 2]], [[0, 1, 3]]],
    )
    scorer = Scorer(trace, [2])
    score = scorer.score("told")
    assert scorer.scored_tokens == 3
    assert score.rank_precision == pytest.approx((1, 0, 2 / 3))
    assert score.rank_recall == pytest.approx((1 / 2, 1 / 2, 5 / 6))
    assert score.layer_recall == (score.recall,) == (0.5,)
    (cache,) = score.caches
    # Held before each scored token: {0, 1}, {0, 1}, {2, 3}. Missed: none, 2 and 3, 0.
    assert (cache.hit_rate, cache.misses_per_token) == (0.5, 1.0)
    assert cache.misses_named == pytest.approx(2 / 3)  # 3, and 0
    assert cache.wrong_reads_per_token == pytest.approx(2 / 3)  # 2 first, then 1


def test_the_simulated_cache_keeps_what_was_used_last() -> None:
    trace = trace_of([[[0], [3]], [[1], [3]], [[0], [2]]], [[[0], [0]]] * 3)
    held = held_before(trace, 3)
    contents = [[np.flatnonzero(layer).tolist() for layer in token] for token in held]
    assert contents == [[[], []], [[0], [3]], [[0, 1], [3]]]
    assert held_before(trace, 2)[2].any(axis=1).tolist() == [True, True]
    assert not held_before(trace, 2)[2, 0, 0]


def test_history_predictors_know_only_what_was_before() -> None:
    trace = with_history(trace_of([[[0]], [[1]], [[1]], [[0]]], [[[0]]] * 4), 2)
    assert trace.guesses["previous_token"].tolist()[1:] == [[[0, 1]], [[1, 0]], [[1, 0]]]
    assert trace.guesses["frequency"].tolist()[3] == [[1, 0]]
    assert (trace.guesses["frequency"][0] == NO_GUESS).all()


def test_traces_are_read_and_others_refused(tmp_path: Path) -> None:
    good, bad, broken = (tmp_path / f"{name}.npz" for name in ("good", "bad", "broken"))
    np.savez(good, routing=np.zeros((5, 2, 3), np.int16), layers=np.array([1, 2]))
    assert read_trace(good).layers == (1, 2)
    np.savez(bad, routing=np.zeros((5, 2, 3), np.int16), layers=np.array([1, 2, 3]))
    with pytest.raises(ModelFormatError, match="wanted are"):
        read_trace(bad)
    broken.write_bytes(b"PK\x03\x04 nothing more")
    with pytest.raises(ModelFormatError, match="is no trace"):
        read_trace(broken)
    with pytest.raises(ModelNotFoundError):
        read_trace(tmp_path / "none.npz")
