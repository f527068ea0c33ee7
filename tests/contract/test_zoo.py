"""The generated models themselves: llama.cpp accepts them, and they are worth testing with."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import gguf
import numpy as np
import pytest

import zoo
from zoo.plain import open_llama

TEXT = b"Hello the world<|im_end|>\n"


@pytest.mark.parametrize("name", zoo.MODELS)
def test_each_model_decodes_to_logits_that_differ_between_tokens(
    name: str, zoo_model: Callable[[str], Path]
) -> None:
    with closing(open_llama(zoo_model(name), n_ctx=64)) as model:
        tokens = model.tokenize(TEXT, add_bos=False, special=True)
        model.eval(tokens)
        logits = model.scores[: len(tokens)]
        assert np.isfinite(logits).all()
        # The double l too: the same token after another one.
        assert np.abs(logits[1:] - logits[:-1]).mean(axis=1).min() > 0.1
        assert model.detokenize(tokens, special=True) == TEXT
        assert len(tokens) < len(TEXT) - len("<|im_end|>")  # merges and markup do work


@pytest.mark.parametrize("name", zoo.MODELS)
def test_a_model_is_small_and_quick_to_write(name: str, tmp_path: Path) -> None:
    start = time.process_time()
    zoo.write(tmp_path, name)
    assert time.process_time() - start < 2.0
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 4_000_000


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("one", "again", "other")]
    for path, seed in zip(paths, (0, 0, 1), strict=True):
        path.mkdir()
        zoo.write(path, "gpt-oss", seed=seed)
    one, again, other = ((path / "gpt-oss.gguf").read_bytes() for path in paths)
    assert one == again
    assert one != other


def part_sizes(directory: Path) -> set[int]:
    """Bytes of one expert's share of every tensor of routed experts in these files."""
    tensors = [t for file in directory.iterdir() for t in gguf.GGUFReader(file).tensors]
    routed = [t for t in tensors if "_exps." in t.name]
    return {int(t.n_bytes) // int(t.shape[-1]) for t in routed}


def test_the_part_sizes_cover_what_direct_reads_distinguish(tmp_path: Path) -> None:
    sizes: dict[str, set[int]] = {}
    for name in ("qwen3moe", "qwen3moe-q8", "qwen3moe-mixed", "gpt-oss"):
        (tmp_path / name).mkdir()
        zoo.write(tmp_path / name, name)
        sizes[name] = part_sizes(tmp_path / name)
    assert all(size % 4096 == 0 for size in sizes["qwen3moe"])
    assert all(size % 512 == 0 and size % 4096 for size in sizes["qwen3moe-q8"])
    assert len(sizes["qwen3moe-mixed"]) > 2
    assert all(size % 512 for size in sizes["gpt-oss"])


def test_shards_split_one_model(tmp_path: Path) -> None:
    path = zoo.write(tmp_path, "qwen3moe-scaled")
    assert path.name.endswith("-00001-of-00003.gguf")
    assert len(list(tmp_path.iterdir())) == 3
