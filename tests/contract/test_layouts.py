"""The layouts of the zoo cover what checkpoints differ in: types, part sizes, files."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

import zoo
from localmoe.cache.slots import slot_classes
from localmoe.weights.catalog import Catalog
from localmoe.weights.ggml_types import GGML_TYPES
from localmoe.weights.gguf import build_catalog
from localmoe.weights.gguf_header import GgufHeader
from localmoe.weights.shards import read_shards

ZooModel = Callable[[str], Path]

NO_WEIGHTS = frozenset(("I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"))
"""Types that llama.cpp has for integers and for what it multiplies weights with."""
NOT_WRITTEN = frozenset(("Q2_0",))
"""The gguf package does not know this type yet."""


@cache
def headers_of(path: Path) -> tuple[GgufHeader, ...]:
    return read_shards(path)


def catalog_of(path: Path) -> Catalog:
    return build_catalog(headers_of(path))


def types_of(path: Path, *projections: str) -> set[str]:
    """Types of the experts' matrices of these projections."""
    names = tuple(f"ffn_{projection}_exps.weight" for projection in projections)
    tensors = [tensor for header in headers_of(path) for tensor in header.tensors]
    return {tensor.type_name for tensor in tensors if tensor.name.endswith(names)}


def part_sizes(path: Path) -> set[int]:
    return {nbytes for layer in catalog_of(path).layers for nbytes in layer.part_nbytes}


@pytest.mark.parametrize("projections", [("gate", "up"), ("down",)])
def test_every_type_of_weights_is_in_some_layout(
    projections: tuple[str, ...], zoo_model: ZooModel
) -> None:
    wanted = {kind.name for kind in GGML_TYPES.values()} - NO_WEIGHTS - NOT_WRITTEN
    found = set().union(*(types_of(zoo_model(name), *projections) for name in zoo.LAYOUTS))
    assert sorted(wanted - found) == []


def test_models_have_from_one_to_five_size_classes(zoo_model: ZooModel) -> None:
    counts = {len(slot_classes(catalog_of(zoo_model(name)).layers, 1)) for name in zoo.LAYOUTS}
    assert counts >= {1, 2, 3, 5}


def test_part_sizes_are_multiples_of_a_page_of_a_sector_and_of_neither(
    zoo_model: ZooModel,
) -> None:
    sizes = set().union(*(part_sizes(zoo_model(name)) for name in zoo.LAYOUTS))
    assert any(size % 4096 == 0 for size in sizes)
    assert any(size % 512 == 0 and size % 4096 for size in sizes)
    assert any(size % 512 and size > 4096 for size in sizes)
    assert any(size < 512 for size in sizes)


@pytest.mark.parametrize(("name", "columns"), [("qwen3moe-1408", 1408), ("gpt-oss-2880", 2880)])
def test_down_has_columns_that_no_block_of_256_fits(
    name: str, columns: int, zoo_model: ZooModel
) -> None:
    assert columns % 256
    downs = [
        tensor
        for header in headers_of(zoo_model(name))
        for tensor in header.tensors
        if tensor.name.endswith("ffn_down_exps.weight")
    ]
    assert {tensor.shape[0] for tensor in downs} == {columns}


def test_in_a_mixture_the_same_projection_differs_between_layers(zoo_model: ZooModel) -> None:
    layers = catalog_of(zoo_model("qwen3moe-q4_k_m")).layers
    gates, ups, downs = zip(*(layer.part_nbytes for layer in layers), strict=True)
    assert len(set(gates)) == len(set(ups)) == 1
    assert [down > gate for down, gate in zip(downs, gates, strict=True)] == [
        layer.layer in (2, 5) for layer in layers
    ]


def test_files_are_aligned_to_32_and_to_4096_bytes(zoo_model: ZooModel) -> None:
    aligned = {header.alignment for name in zoo.LAYOUTS for header in headers_of(zoo_model(name))}
    assert aligned == {32, 4096}


@pytest.mark.parametrize(("name", "count"), [("qwen3moe-q4_k_m", 3), ("qwen3moe-q5_k_m", 7)])
def test_shards_begin_and_end_with_experts(name: str, count: int, zoo_model: ZooModel) -> None:
    headers = headers_of(zoo_model(name))
    assert len(headers) == count
    assert any("_exps" in header.tensors[0].name for header in headers[1:])
    assert "_exps" in headers[-1].tensors[-1].name


def test_a_layer_may_lie_in_two_shards(zoo_model: ZooModel) -> None:
    layers = catalog_of(zoo_model("qwen3moe-q4_k_m")).layers
    paths = [{part.extent.path for part in layer.parts} for layer in layers]
    assert [len(of_layer) for of_layer in paths] == [1, 2, 1, 2, 1, 1]


def test_published_nvfp4_has_two_scales_per_expert_and_matrix(zoo_model: ZooModel) -> None:
    resident = {
        tensor.name: tensor.extent for tensor in catalog_of(zoo_model("qwen3moe-nvfp4")).resident
    }
    for projection in ("gate", "up", "down"):
        for scale in ("scale", "input_scale"):
            extent = resident[f"blk.0.ffn_{projection}_exps.{scale}"]
            assert extent.nbytes == 4 * zoo.LAYOUTS["qwen3moe-nvfp4"].shape.experts
