"""Sampling: each filter alone, their order, and the merging of options."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localmoe.chat.sampling import Sampler, SamplingOptions
from localmoe.errors import EngineError, SettingsError

OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


def logits_of(*chances: float) -> np.ndarray:
    return np.log(np.array(chances)).astype(np.float32)


def test_temperature_zero_takes_the_likeliest_token() -> None:
    sampler = Sampler(SamplingOptions(temperature=0))
    assert [sampler.choose(logits_of(0.2, 0.5, 0.3)) for _ in range(5)] == [1] * 5


def test_top_k_keeps_the_k_likeliest_and_breaks_ties_by_the_lower_id() -> None:
    sampler = Sampler(SamplingOptions(temperature=1, top_k=3, top_p=1, min_p=0))
    tokens, chances = sampler.candidates(logits_of(0.1, 0.3, 0.1, 0.4, 0.1))
    assert tokens.tolist() == [3, 1, 0]
    np.testing.assert_allclose(chances, [0.5, 0.375, 0.125], rtol=1e-6)


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    sampler = Sampler(SamplingOptions(temperature=1, top_k=0, top_p=0.75, min_p=0))
    assert sampler.candidates(logits_of(0.5, 0.3, 0.15, 0.05))[0].tolist() == [0, 1]


def test_min_p_is_a_share_of_the_likeliest() -> None:
    sampler = Sampler(SamplingOptions(temperature=1, top_k=0, top_p=1, min_p=0.3))
    assert sampler.candidates(logits_of(0.5, 0.3, 0.14, 0.06))[0].tolist() == [0, 1]


def test_temperature_comes_after_the_filters() -> None:
    # At temperature 5 first, top-p 0.75 would keep three tokens.
    sampler = Sampler(SamplingOptions(temperature=5, top_k=0, top_p=0.75, min_p=0))
    tokens, chances = sampler.candidates(logits_of(0.5, 0.3, 0.15, 0.05))
    assert tokens.tolist() == [0, 1]
    np.testing.assert_allclose(chances[0] / chances[1], (0.5 / 0.3) ** 0.2, rtol=1e-6)


def test_top_p_counts_after_top_k() -> None:
    # Among the two likeliest the first has 0.5 / 0.8 = 0.625 of the whole.
    sampler = Sampler(SamplingOptions(temperature=1, top_k=2, top_p=0.6, min_p=0))
    assert sampler.candidates(logits_of(0.5, 0.3, 0.15, 0.05))[0].tolist() == [0]


def test_the_drawn_frequencies_are_the_probabilities() -> None:
    sampler = Sampler(SamplingOptions(temperature=1, seed=3, **OFF))
    drawn = [sampler.choose(logits_of(0.6, 0.3, 0.1)) for _ in range(4000)]
    counts = np.bincount(drawn, minlength=3) / 4000
    np.testing.assert_allclose(counts, [0.6, 0.3, 0.1], atol=0.03)


def test_a_seed_decides_everything_and_another_decides_otherwise() -> None:
    logits = np.zeros(1000, dtype=np.float32)

    def draw(seed: int) -> list[int]:
        sampler = Sampler(SamplingOptions(temperature=1, seed=seed, **OFF))
        return [sampler.choose(logits) for _ in range(20)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_an_error(bad: float) -> None:
    logits = np.zeros(8, dtype=np.float32)
    logits[3] = bad
    with pytest.raises(EngineError, match="logits"):
        Sampler(SamplingOptions(temperature=0)).choose(logits)


@settings(max_examples=100, deadline=None)
@given(
    scores=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40),
    temperature=st.floats(0, 5),
    top_k=st.integers(0, 50),
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
)
def test_any_options_choose_a_token_that_the_filters_let_through(
    scores: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    options = SamplingOptions(temperature, top_k, top_p, min_p, seed=0)
    sampler, logits = Sampler(options), np.array(scores, dtype=np.float32)
    token = sampler.choose(logits)
    assert 0 <= token < len(scores)
    if temperature > 0:
        tokens, chances = sampler.candidates(logits)
        assert token in tokens
        assert chances.sum() == pytest.approx(1)
        assert len(tokens) <= (top_k or len(scores))
        assert logits[tokens].min() >= np.sort(logits)[::-1][len(tokens) - 1]


def test_flags_win_over_the_checkpoint_and_that_over_the_defaults() -> None:
    flags = {"temperature": 0.1, "top_k": None, "top_p": None, "min_p": None, "seed": 5}
    options = SamplingOptions.merged(flags, {"temperature": 0.6, "top_k": 20.0})
    assert options == SamplingOptions(0.1, 20, 0.95, 0.05, 5)


def test_nothing_given_is_the_default() -> None:
    assert SamplingOptions.merged({}, {}) == SamplingOptions(0.8, 40, 0.95, 0.05, None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("seed", -1),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(name: str, value: float) -> None:
    with pytest.raises(SettingsError, match=name.replace("_", "-")):
        SamplingOptions.merged({name: value}, {})


def test_a_bad_value_in_the_checkpoint_says_so() -> None:
    with pytest.raises(SettingsError, match=r"model file.*--temperature"):
        SamplingOptions.merged({}, {"temperature": -3.0})
    assert SamplingOptions.merged({"temperature": 0.5}, {"temperature": -3.0}).temperature == 0.5
