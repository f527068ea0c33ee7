"""The demo model in llama.cpp, against the dense model that it is made of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp import Llama

from localmoe.demo.recipe import load_recipe
from localmoe.demo.source import find_source
from localmoe.demo.writer import SAMPLING, write_model
from zoo.plain import open_llama

CHATS = json.loads(Path(__file__).with_name("test_demo_chats.json").read_text())
"""Questions that nothing was tuned on, with the dense model's answers."""
ARCHITECTURE = "deepseek"


def _open(path: Path, **options: Any) -> Llama:
    return open_llama(path, n_ctx=512, **options)


def _logits(model: Llama, tokens: list[int]) -> np.ndarray:
    """Logits after every token, float32 [T, V]."""
    model.reset()
    model.eval(tokens)
    return np.array(model.scores[: len(tokens)], np.float32)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _divergence(dense: np.ndarray, other: np.ndarray) -> np.ndarray:
    """KL(dense || other) of every position, in nats."""
    p, q = _log_softmax(dense), _log_softmax(other)
    return (np.exp(p) * (p - q)).sum(-1)


@pytest.fixture(scope="module")
def dense() -> Iterator[Llama]:
    model = _open(find_source())
    yield model
    model.close()


@pytest.fixture(scope="module")
def demo(demo_model_path: Path) -> Iterator[Llama]:
    model = _open(demo_model_path)
    yield model
    model.close()


def _chat(model: Llama, chat: dict[str, str]) -> tuple[list[int], int]:
    """Tokens of a chat, and the position that predicts the first token of the answer."""
    question, answer = (
        model.tokenize(chat[part].encode(), add_bos=False, special=True)
        for part in ("question", "answer")
    )
    return question + answer, len(question) - 1


def test_demo_stays_close_to_the_dense_model(dense: Llama, demo: Llama) -> None:
    """The bar: 0.30 nats per answered token on chats that tuning has not seen."""
    divergences = []
    for chat in CHATS[::2]:
        tokens, first = _chat(dense, chat)
        both = (_logits(model, tokens)[first:-1] for model in (dense, demo))
        divergences.append(_divergence(*both))
    every = np.concatenate(divergences)
    assert len(every) > 400
    assert every.mean() <= 0.30


def test_split_with_all_experts_is_the_dense_model(dense: Llama, tmp_path: Path) -> None:
    recipe = load_recipe()
    path = tmp_path / "exact.gguf"
    exact = replace(recipe.untuned(used=recipe.experts), gain=1e-6)  # all weights equal
    steps: list[tuple[int, int]] = []
    write_model(path, find_source(), exact, lambda _, done, total: steps.append((done, total)))
    assert steps == sorted(steps)
    assert steps[-1] == (steps[0][1], steps[0][1])
    split = _open(path)
    tokens, _ = _chat(dense, CHATS[0])
    tokens = tokens[:96]
    divergence = _divergence(_logits(dense, tokens), _logits(split, tokens))
    split.close()
    # the rest is rounding: llama.cpp multiplies Q4_1 and Q8_0 weights with differently rounded
    # activations. tests/unit/test_demo_tensors.py holds the identity to 1e-9.
    assert divergence.mean() < 0.02


def test_six_active_by_override(demo_model_path: Path, dense: Llama) -> None:
    six = _open(demo_model_path, kv_overrides={f"{ARCHITECTURE}.expert_used_count": 6})
    tokens, _ = _chat(dense, CHATS[1])
    batch = _logits(six, tokens[:24])
    six.eval(tokens[24:25])
    assert np.isfinite(batch).all()
    assert np.isfinite(six.scores[24]).all()
    six.close()


def test_metadata_of_the_dense_model_is_kept(dense: Llama, demo: Llama) -> None:
    for key in ("tokenizer.chat_template", "general.license", "tokenizer.ggml.eos_token_id"):
        assert demo.metadata[key] == dense.metadata[key]
    assert demo.metadata["general.architecture"] == ARCHITECTURE
    assert "derived from SmolLM2-135M-Instruct" in demo.metadata["general.description"]


def test_sampling_defaults_are_in_the_file(demo: Llama) -> None:
    for name, value in SAMPLING.items():
        assert float(demo.metadata[f"general.sampling.{name}"]) == pytest.approx(value)


def test_experts_are_where_the_recipe_says(demo: Llama) -> None:
    recipe = load_recipe()
    assert int(demo.metadata[f"{ARCHITECTURE}.expert_count"]) == recipe.experts
    assert int(demo.metadata[f"{ARCHITECTURE}.expert_used_count"]) == recipe.used
    assert int(demo.metadata[f"{ARCHITECTURE}.leading_dense_block_count"]) == 1
