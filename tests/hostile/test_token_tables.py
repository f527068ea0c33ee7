"""A table from tokens to experts is data, yet llama.cpp aborts on a wrong number in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import localmoe
from localmoe.errors import ModelFormatError
from localmoe.weights.gguf import build_catalog
from localmoe.weights.shards import read_shards
from localmoe.weights.token_tables import check_token_tables

TABLE = "blk.0.ffn_gate_tid2eid.weight"


def damaged(sound: Path, folder: Path, expert: int) -> Path:
    """Return a copy whose table gives the last token this expert."""
    tensor = next(t for t in read_shards(sound)[0].tensors if t.name == TABLE)
    data = bytearray(sound.read_bytes())
    end = tensor.offset + tensor.nbytes
    data[end - 4 : end] = np.int32(expert).tobytes()
    path = folder / "damaged.gguf"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("expert", [16, -1, 1 << 30])
def test_an_expert_that_no_layer_has_is_refused_before_it_is_used(
    expert: int, tmp_path: Path, zoo_model: Callable[[str], Path]
) -> None:
    path = damaged(zoo_model("deepseek4"), tmp_path, expert)
    with pytest.raises(ModelFormatError, match=rf"{TABLE} names the experts .*{expert}"):
        localmoe.load(path, localmoe.Settings(context_tokens=32))


def test_the_last_expert_passes(tmp_path: Path, zoo_model: Callable[[str], Path]) -> None:
    headers = read_shards(damaged(zoo_model("deepseek4"), tmp_path, 15))
    check_token_tables(headers, build_catalog(headers))
