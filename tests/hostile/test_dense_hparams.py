"""Dense models: what llama.cpp would abort on is refused as in models with experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from localmoe.backends.llama.dry_run import dry_run
from localmoe.errors import ModelFormatError
from localmoe.weights.gguf import build_catalog
from localmoe.weights.hparams import check_hparams
from localmoe.weights.shards import read_shards
from raw_gguf import RawGguf, tiny


def dense(architecture: str) -> RawGguf:
    raw = tiny(architecture)
    for key in ("expert_count", "expert_used_count"):
        raw = raw.without_key(f"{architecture}.{key}")
    return replace(raw, tensors=raw.tensors[:3])


def check(raw: RawGguf, folder: Path) -> None:
    headers = read_shards(raw.write(folder / "model.gguf"))
    assert build_catalog(headers).layers == ()
    check_hparams(headers)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma3", "phi3", "gpt2", "mamba"])
def test_sound_headers_pass(name: str, tmp_path: Path) -> None:
    check(dense(name), tmp_path)


def test_only_recurrent_models_need_no_heads(tmp_path: Path) -> None:
    for name in ("mamba", "rwkv7"):
        key = f"{name}.attention.head_count"
        check(dense(name).without_key(key), tmp_path)
        check(dense(name).with_key(key, "u32", 0), tmp_path)
    for raw in (
        dense("llama").without_key("llama.attention.head_count"),
        dense("llama").with_key("llama.attention.head_count", "u32", 0),
    ):
        with pytest.raises(ModelFormatError, match=r"llama\.attention\.head_count"):
            check(raw, tmp_path)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llama", "rope.dimension_count", 4),
        ("qwen2", "rope.dimension_count", 4),
        ("olmo2", "rope.dimension_count", 4),
        ("qwen3", "attention.value_length", 16),
        ("phi3", "attention.value_length", 16),
        ("gpt2", "attention.value_length", 16),
        ("phi3", "rope.dimension_count", 0),
        ("gemma3", "rope.dimension_count", 0),
        ("gemma3", "rope.dimension_count", 7),
        ("glm4", "rope.dimension_count", 16),
    ],
)
def test_widths_that_a_graph_asserts(name: str, key: str, value: int, tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=f"{name}.{key}"):
        check(dense(name).with_key(f"{name}.{key}", "u32", value), tmp_path)


@pytest.mark.parametrize("size", [0, 32, 96])
def test_heads_of_rwkv_are_computed_in_whole_steps(size: int, tmp_path: Path) -> None:
    """llama.cpp does not look: it would read and write behind the last head."""
    key = "rwkv7.wkv.head_size"
    with pytest.raises(ModelFormatError, match=key):
        check(dense("rwkv7").with_key(key, "u32", size), tmp_path)
    check(dense("rwkv7").with_key(key, "u32", 128), tmp_path)


def test_what_is_left_ends_the_child_alone(
    zoo_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """llama.cpp loads a mamba whose state is wider than what it was written with, or refuses it."""
    path = tmp_path / "mamba.gguf"
    data = zoo_model("mamba").read_bytes()
    key = b"mamba.ssm.state_size"
    at = data.index(key) + len(key) + 4
    path.write_bytes(data[:at] + (9).to_bytes(4, "little") + data[at + 4 :])
    with pytest.raises(ModelFormatError, match="llama.cpp"):
        dry_run([str(path)], context_tokens=64, chunks=[8])
