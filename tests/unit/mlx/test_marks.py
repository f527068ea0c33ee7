"""Checkpoints as Hugging Face has them: a tensor for each expert, found through mlx-lm itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import zoo_mlx
from localmoe.backends.mlx.load import load
from localmoe.errors import UnsupportedModelError
from localmoe.settings import Settings
from localmoe.weights.catalog import ExpertPart, ScatteredPart
from zoo_torch.tokenizer import write_tokenizer

PROMPT = [(31 * place + 3) % 250 for place in range(14)]
PLAIN = {"gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj"}
PUBLISHED = {
    "qwen3_moe": PLAIN,
    "deepseek_v3": PLAIN,
    "lfm2_moe": {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
    "mixtral": {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
    "minimax": {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
    "nemotron_h": {"fc1": "up_proj", "fc2": "down_proj"},
    "afmoe": PLAIN,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_tensor_for_each_expert(name: str, tmp_path: Path) -> None:
    folder = zoo_mlx.write(tmp_path, name)
    write_tokenizer(folder)
    plain = zoo_mlx.plain_logits(zoo_mlx.stock(folder), [PROMPT], 2)
    zoo_mlx.take_apart(folder, PUBLISHED[name])
    assert len(list(folder.glob("model-*.safetensors"))) == 3
    assert np.array_equal(zoo_mlx.plain_logits(zoo_mlx.stock(folder), [PROMPT], 2), plain)
    with load(folder, Settings(slots=5, context_tokens=64)) as engine:
        parts = [part for layer in engine.catalog.layers for part in layer.parts]
        assert all(isinstance(part, ScatteredPart) for part in parts)
        streamed = [engine.decode(PROMPT, "all")]
        for _ in range(2):
            streamed.append(engine.decode([int(streamed[-1][-1].argmax())]))
    assert np.array_equal(np.concatenate(streamed), plain)


def test_stacked_experts_are_one_extent(tmp_path: Path) -> None:
    folder = zoo_mlx.write(tmp_path, "glm4_moe", "affine")
    write_tokenizer(folder)
    with load(folder, Settings(slots=5, context_tokens=64)) as engine:
        for layer in engine.catalog.layers:
            assert len(layer.parts) == 9
            assert all(isinstance(part, ExpertPart) for part in layer.parts)
            assert (layer.n_experts, layer.n_experts_used) == (8, 2)


def test_what_mlx_lm_computes_is_refused(tmp_path: Path) -> None:
    """Llama 4's experts are stored the other way round: they are not what is multiplied."""
    folder = zoo_mlx.write(tmp_path, "llama4")
    zoo_mlx.turn_round(folder)
    with pytest.raises(UnsupportedModelError, match=r"mlx_lm\.convert"):
        load(folder, Settings(slots=5, context_tokens=64))
