"""What a token multiplies with, counted from a header."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from localmoe.backends.llama.planned import plan_model
from localmoe.bench.small_models import narrow
from localmoe.planning.token_work import TokenWork, token_work
from localmoe.settings import Settings
from localmoe.synthetic.config import Config
from localmoe.synthetic.writer import write_uniform
from localmoe.weights.catalog import Catalog

SMALL = replace(
    narrow(),
    layers=2,
    embedding=128,
    heads=4,
    kv_heads=4,
    head_size=32,
    experts=4,
    experts_used=3,
    expert_feed_forward=64,
)


def work_of(config: Config) -> TokenWork:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_uniform(path, config, "Q8_0")
        return plan_model(path, Settings(context_tokens=64), 1 << 40).work


def test_rows_are_counted_once_for_each_expert_that_a_token_uses() -> None:
    work = work_of(SMALL)
    assert work.routed_rows == 2 * 3 * (64 + 64 + 128)
    heads = 4 * 32
    layer = heads + 2 * heads + 128 + 4  # queries, keys and values, output, router
    assert work.resident_rows == 2 * layer + 256  # and the vocabulary; norms have no rows


@pytest.mark.parametrize(("heads", "kv_heads", "found"), [(8, 2, 4.0), (4, 4, 1.0)])
def test_query_heads_for_each_key_head(heads: int, kv_heads: int, found: float) -> None:
    assert work_of(replace(SMALL, heads=heads, kv_heads=kv_heads)).queries_per_key == found


@pytest.mark.parametrize(
    ("heads", "kv_heads", "found"),
    [((8, 8, 8), (2, 0, 2), 4.0), ((8, 4), (1, 1), 6.0), (0, 0, 1.0), (8, "many", 1.0)],
)
def test_layers_without_attention_do_not_count(
    heads: object, kv_heads: object, found: float
) -> None:
    metadata = {"a.block_count": 3, "a.attention.head_count": heads}
    metadata["a.attention.head_count_kv"] = kv_heads
    catalog = Catalog("a", ("f",), (), (), metadata=metadata)
    assert token_work((), catalog).queries_per_key == found
