"""The tokenizer of tiny checkpoints, as transformers reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

import zoo_torch

TEXT = "Then the winter, at -4 °C: 我们\n\x00 🦊"


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    zoo_torch.write_tokenizer(tmp_path)
    return AutoTokenizer.from_pretrained(tmp_path)


def test_any_text_comes_back(tokenizer: Any) -> None:
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    assert len(ids) < len(TEXT.encode())  # merges do work
    assert max(ids) < len(tokenizer) <= zoo_torch.VOCABULARY


def test_a_chat_is_rendered_with_markup(tokenizer: Any) -> None:
    chat = [{"role": "user", "content": "the"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos_token_id == 1
    assert ids.count(tokenizer.eos_token_id) == 1


def test_generation_ends_at_the_tokens_that_models_know(tokenizer: Any, tmp_path: Path) -> None:
    settings: Any = GenerationConfig.from_pretrained(tmp_path)
    assert tokenizer.convert_ids_to_tokens(settings.eos_token_id) == ["<|im_end|>", "<|endoftext|>"]
    path = zoo_torch.write(tmp_path / "model", "qwen3_moe")
    config: Any = zoo_torch.stock(path, torch.bfloat16, "eager").config
    assert config.eos_token_id == settings.eos_token_id[0]
    assert config.pad_token_id == settings.pad_token_id


def test_it_is_the_same_every_time(tmp_path: Path) -> None:
    written = []
    for name in ("one", "again"):
        (tmp_path / name).mkdir()
        zoo_torch.write_tokenizer(tmp_path / name)
        written.append({f.name: f.read_bytes() for f in (tmp_path / name).iterdir()})
    assert written[0] == written[1]
    assert len(written[0]) == 3
