"""What a header and a config say is checked before anything is believed, and refused in words."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from localmoe.backends.torch.formats import format_of
from localmoe.backends.torch.formats.fp8 import Fp8
from localmoe.errors import LocalMoeError, ModelFormatError, UnsupportedModelError
from zoo_torch.formats import FORMATS, quantization_config, store
from zoo_torch.headers import HeaderTensor, header_of

NAME, STEM = "layers.0.up_proj.weight", "layers.0.up_proj"
FUSED = "layers.0.experts.up_proj"
Header = dict[str, HeaderTensor]
Config = dict[str, Any]


@cache
def header(format_name: str) -> Header:
    fused = format_name == "mxfp4"
    weight = torch.ones((2, 256, 192) if fused else (192, 256), dtype=torch.bfloat16)
    return header_of(store(FUSED if fused else NAME, weight, format_name))


def changed(format_name: str, suffix: str, dtype: str, *shape: int) -> Header:
    return {**header(format_name), STEM + suffix: HeaderTensor(dtype, shape)}


def without(format_name: str, suffix: str) -> Header:
    found = dict(header(format_name))
    del found[STEM + suffix]
    return found


WRONG_TENSORS: list[tuple[str, Header, str]] = [
    ("fp8-block", changed("fp8-block", ".weight_scale_inv", "F32", 3, 2), "scales of shape"),
    ("fp8-block", changed("fp8-block", ".weight_scale_inv", "F32", 2), "scales of shape"),
    ("fp8-block", changed("fp8-block", ".weight_scale_inv", "F32", 2, 2, 1), "scales of shape"),
    ("fp8-block", changed("fp8-block", ".weight_scale_inv", "I32", 2, 2), "found I32"),
    ("fp8-block", changed("fp8-block", ".weight", "F8_E4M3", 192), "rows and columns"),
    ("fp8-block", changed("fp8-block", ".weight", "F8_E4M3", 0, 256), "rows and columns"),
    ("fp8-block", changed("fp8-block", ".weight_scale", "F32", 2, 2), "found 2"),
    ("fp8-block", without("fp8-block", ".weight_scale_inv"), "found 0"),
    ("bf16", changed("bf16", ".weight_scale", "F32", 1), "not quantized"),
    ("int4-g32", changed("int4-g32", ".weight_packed", "I32", 192, 33), "config group"),
    ("int4-g32", changed("int4-g32", ".weight_packed", "I32", 191, 32), "config group"),
    ("int4-g32", changed("int4-g32", ".weight_packed", "I32", 192 * 32), "rows and columns"),
    ("int4-g32", changed("int4-g32", ".weight_packed", "F32", 192, 32), "found F32"),
    ("int4-g32", changed("int4-g32", ".weight_scale", "BF16", 192, 16), "config group"),
    ("int4-g32", changed("int4-g32", ".weight_scale", "F8_E4M3", 192, 8), "found F8_E4M3"),
    ("int4-g32", changed("int4-g32", ".weight_shape", "I64", 3), "weight_shape"),
    ("int4-g32", changed("int4-g32", ".weight_zero_point", "I32", 24, 8), "config group"),
    ("int4-g32", without("int4-g32", ".weight_scale"), "found none"),
    ("int4-g32-asymmetric", without("int4-g32-asymmetric", ".weight_zero_point"), "zero points"),
    ("nvfp4", changed("nvfp4", ".weight_scale", "F8_E4M3", 192, 8), "of shape (192, 16)"),
    ("nvfp4", changed("nvfp4", ".weight_scale", "U8", 192, 16), "found U8"),
    ("nvfp4", changed("nvfp4", ".weight_packed", "U8", 192, 127), "groups of 16"),
    ("nvfp4", changed("nvfp4", ".weight_global_scale", "F32", 192), "a single"),
    ("nvfp4", changed("nvfp4", ".weight_global_scale", "BF16", 1), "found BF16"),
    ("nvfp4-modelopt", changed("nvfp4-modelopt", ".weight_scale_2", "F32", 2), "a single"),
    ("mxfp4-packed", changed("mxfp4-packed", ".weight_scale", "U8", 192, 7), "of shape"),
    ("mxfp4-packed", changed("mxfp4-packed", ".weight_packed", "U8", 192, 120), "groups of 32"),
]


@pytest.mark.parametrize(("format_name", "tensors", "words"), WRONG_TENSORS)
def test_tensors_that_cannot_be_one_weight(format_name: str, tensors: Header, words: str) -> None:
    with pytest.raises(ModelFormatError, match="layers.0.up_proj") as caught:
        format_of(NAME, tensors, quantization_config(format_name))
    assert words in str(caught.value)


UNKNOWN: list[tuple[str, Header]] = [
    ("bf16", changed("bf16", ".weight", "I8", 192, 256)),
    ("bf16", changed("bf16", ".weight", "U8", 192, 256)),
    ("bf16", changed("bf16", ".weight", "F64", 192, 256)),
    ("bf16", without("bf16", ".weight")),
    ("int4-g32", changed("int4-g32", ".weight_g_idx", "I32", 256)),
    ("nvfp4-modelopt", changed("nvfp4-modelopt", ".pre_quant_scale", "BF16", 256)),
    ("nvfp4", changed("nvfp4", ".weight_zero_point", "I32", 24, 16)),
    ("fp8-channel", changed("fp8-channel", ".weight_zero_point", "F8_E4M3", 192, 1)),
    ("fp8-channel", changed("fp8-channel", ".bitmask", "U8", 192, 32)),
]


@pytest.mark.parametrize(("format_name", "tensors"), UNKNOWN)
def test_tensors_that_are_not_decoded(format_name: str, tensors: Header) -> None:
    with pytest.raises(UnsupportedModelError, match=r"Take a"):
        format_of(NAME, tensors, quantization_config(format_name))


@pytest.mark.parametrize(
    ("blocks", "scales"),
    [
        ((2, 192, 8, 16), (2, 192, 9)),
        ((2, 192, 8, 15), (2, 192, 8)),
        ((2, 192, 128), (2, 192, 8)),
        ((2, 0, 8, 16), (2, 0, 8)),
        ((), (2, 192, 8)),
    ],
)
def test_blocks_of_gpt_oss_that_do_not_fit(
    blocks: tuple[int, ...], scales: tuple[int, ...]
) -> None:
    tensors = {
        f"{FUSED}_blocks": HeaderTensor("U8", blocks),
        f"{FUSED}_scales": HeaderTensor("U8", scales),
    }
    with pytest.raises(ModelFormatError, match="experts.up_proj"):
        format_of(FUSED, tensors, quantization_config("mxfp4"), stacked=True)


def weights(**more: object) -> Callable[[Config], None]:
    return lambda config: config["config_groups"]["group_0"]["weights"].update(more)


def top(**more: object) -> Callable[[Config], None]:
    return lambda config: config.update(more)


LIES: list[tuple[str, Callable[[Config], None], type[LocalMoeError]]] = [
    ("int4-g32", weights(group_size=64), ModelFormatError),
    ("int4-g32", weights(group_size=0), ModelFormatError),
    ("int4-g32", weights(group_size="32"), ModelFormatError),
    ("int4-g32", weights(num_bits=8), ModelFormatError),
    ("int4-g32", weights(num_bits="4"), ModelFormatError),
    ("int4-g32", weights(num_bits=10**9), ModelFormatError),
    ("int4-g32", weights(type="float"), ModelFormatError),
    ("int4-g32", weights(type=["int"]), ModelFormatError),
    ("int4-g32", weights(strategy="tensor"), ModelFormatError),
    ("int4-g32", weights(strategy={}), ModelFormatError),
    ("int4-g32", weights(symmetric=False), ModelFormatError),
    ("int4-g32", top(config_groups=[]), ModelFormatError),
    ("int4-g32", top(config_groups={"group_0": None}), ModelFormatError),
    ("int4-g32", top(config_groups={"group_0": {"weights": 4}}), ModelFormatError),
    ("int4-g32", top(config_groups={}), ModelFormatError),
    ("int4-g32", top(format="marlin-24"), UnsupportedModelError),
    ("int4-g32", top(format=["pack-quantized"]), UnsupportedModelError),
    ("int4-g32", top(transform_config={"config_groups": {"u": {}}}), UnsupportedModelError),
    ("fp8-block", top(weight_block_size=[64, 128]), ModelFormatError),
    ("fp8-block", top(weight_block_size=[0, 128]), ModelFormatError),
    ("fp8-block", top(weight_block_size=[128]), ModelFormatError),
    ("fp8-block", top(weight_block_size=128), ModelFormatError),
    ("fp8-block", top(weight_block_size="128 by 128"), ModelFormatError),
    ("fp8-block-packed", weights(block_structure=[128, -1]), ModelFormatError),
]


@pytest.mark.parametrize(("format_name", "lie", "error"), LIES)
def test_configs_that_do_not_fit_their_tensors(
    format_name: str, lie: Callable[[Config], None], error: type[LocalMoeError]
) -> None:
    config = quantization_config(format_name)
    if "config_groups" in config:  # the original is shared
        group = config["config_groups"]["group_0"]
        config["config_groups"] = {"group_0": {**group, "weights": dict(group["weights"])}}
    format_of(NAME, header(format_name), config)
    lie(config)
    with pytest.raises(error):
        format_of(NAME, header(format_name), config)


def test_eight_packed_bits_are_refused_as_such() -> None:
    config = quantization_config("int4-g32")
    group = config["config_groups"]["group_0"]
    group["weights"] = {**group["weights"], "num_bits": 8}
    tensors = changed("int4-g32", ".weight_packed", "I32", 192, 64)
    with pytest.raises(UnsupportedModelError, match="8 bits; 4 are decoded"):
        format_of(NAME, tensors, config)


def test_the_model_says_where_the_last_word_of_a_channel_ends() -> None:
    tensors = changed("int4-channel", ".weight_packed", "I32", 192, 32)
    config = quantization_config("int4-channel")
    assert format_of(NAME, tensors, config).shape == (192, 256)
    assert format_of(NAME, tensors, config, shape=(192, 250)).shape == (192, 250)
    for columns in (248, 257):
        with pytest.raises(ModelFormatError):
            format_of(NAME, tensors, config, shape=(192, columns))


@pytest.mark.parametrize("format_name", [name for name in FORMATS if name != "mxfp4"])
def test_a_matrix_that_the_model_does_not_want(format_name: str) -> None:
    config = quantization_config(format_name)
    assert format_of(NAME, header(format_name), config, shape=(192, 256)).shape == (192, 256)
    with pytest.raises(ModelFormatError):
        format_of(NAME, header(format_name), config, shape=(256, 192))


def test_a_mixed_config_says_which_group_fits() -> None:
    config = quantization_config("int4-g32")
    other = quantization_config("fp8-block-packed")["config_groups"]["group_0"]
    channel = quantization_config("int4-channel")["config_groups"]["group_0"]
    activations = {"targets": ["Linear"], "weights": None}
    groups = {"a": activations, "b": other, "c": channel, **config["config_groups"]}
    config = {**config, "format": "mixed-precision", "config_groups": groups}
    for format_name in ("int4-g32", "int4-channel", "fp8-block-packed", "bf16"):
        form = format_of(NAME, header(format_name), config)
        assert form == format_of(NAME, header(format_name), quantization_config(format_name))


def test_fused_fp8_experts_have_scales_by_another_name() -> None:
    tensors = {
        FUSED: HeaderTensor("F8_E4M3", (8, 192, 256)),
        f"{FUSED}_scale_inv": HeaderTensor("F32", (8, 2, 2)),
    }
    form = format_of(FUSED, tensors, quantization_config("fp8-block"), stacked=True)
    assert isinstance(form, Fp8)
    assert form.shape == (192, 256)
    assert form.tensor_names(FUSED) == (FUSED, f"{FUSED}_scale_inv")


def test_mxfp8_has_a_scale_per_32_values() -> None:
    tensors = changed("fp8-channel", ".weight_scale", "U8", 192, 8)
    for config in (None, quantization_config("fp8-tensor")):
        form = format_of(NAME, tensors, config)
        assert isinstance(form, Fp8)
        assert form.grid.counts == (192, 8)


@pytest.mark.parametrize("format_name", ["fp8-block", "int4-g32", "nvfp4"])
def test_tensors_of_another_shape_are_not_decoded(format_name: str) -> None:
    made = store(NAME, torch.ones(192, 256, dtype=torch.bfloat16), format_name)
    form = format_of(NAME, header_of(made), quantization_config(format_name))
    parts = [made[name] for name in form.tensor_names(NAME)]
    out = torch.empty(192, 256, dtype=torch.bfloat16)
    form.decode(parts, out)
    wrong: list[tuple[list[torch.Tensor], torch.Tensor]] = [
        ([parts[0][1:], *parts[1:]], out),
        (parts[:1], out),
        ([parts[0].to(torch.int64), *parts[1:]], out),
        (parts, out.T),
        (parts, out.to(torch.float64)),
    ]
    for tensors, target in wrong:
        with pytest.raises(ValueError, match=r"given$"):
            form.decode(tensors, target)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-4, 300) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
KEYS = ("config_groups", "format", "quant_method", "weight_block_size", "transform_config")


@given(st.sampled_from(FORMATS[:-1]), st.dictionaries(st.sampled_from(KEYS), anything), anything)
def test_no_config_breaks_the_reader(format_name: str, config: Config, inner: object) -> None:
    for tried in (config, {**config, "config_groups": {"a": {"weights": {"num_bits": inner}}}}):
        try:
            form = format_of(NAME, header(format_name), tried)
        except (ModelFormatError, UnsupportedModelError):
            continue
        assert form.shape[0] == 192
