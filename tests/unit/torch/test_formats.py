"""Every stored format decodes to the bits of its own library, in every compute type."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from localmoe.backends.torch.formats import Format, format_of, work
from localmoe.backends.torch.formats.format import COMPUTE_DTYPES
from zoo_torch.formats import FORMATS, quantization_config, store
from zoo_torch.headers import header_of
from zoo_torch.references import reference

LINEAR, FUSED = "layers.0.mlp.experts.3.up_proj.weight", "layers.0.mlp.experts.up_proj"
QUANTIZED = tuple(name for name in FORMATS if name not in ("bf16", "f16", "f32"))
FP4 = ("nvfp4", "nvfp4-modelopt", "mxfp4", "mxfp4-packed")
Tensors = dict[str, torch.Tensor]


def stored(format_name: str, rows: int = 160, columns: int = 256, seed: int = 0) -> Tensors:
    """Return a stored weight whose codes are random bits, so that every code occurs."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, columns, rows) if format_name == "mxfp4" else (rows, columns)
    weight = torch.randn(shape, generator=generator).to(torch.bfloat16)
    tensors = store(name_of(format_name), weight, format_name)
    for name, tensor in tensors.items():
        if name.endswith(("_packed", "_blocks", "_zero_point")) or tensor.dtype in (
            *(torch.float8_e4m3fn, torch.float8_e8m0fnu, torch.uint8),
        ):
            raw = tensor.view(-1).view(torch.uint8)
            raw.copy_(torch.randint(0, 256, raw.shape, generator=generator, dtype=torch.uint8))
        if tensor.dtype == torch.float8_e4m3fn:  # no NaN: see below
            raw[raw & 0x7F == 0x7F] = 0x7E
        if tensor.dtype == torch.float8_e8m0fnu:  # nor scales from 2^120 on
            raw.clamp_(max=246)
    return tensors


def name_of(format_name: str) -> str:
    return FUSED if format_name == "mxfp4" else LINEAR


def form_of(format_name: str, tensors: Tensors) -> Format:
    config = quantization_config(format_name)
    header = header_of(tensors)
    shape = None
    if format_name.startswith("int4-channel"):  # the header does not say where the last word ends
        rows, columns = tensors[LINEAR.replace("weight", "weight_shape")].tolist()
        shape = (rows, columns)
    name = name_of(format_name)
    return format_of(name, header, config, stacked=name == FUSED, shape=shape)


def parts_of(format_name: str, form: Format, tensors: Tensors, expert: int = 1) -> Tensors:
    names = form.tensor_names(name_of(format_name))
    return {n: tensors[n][expert] if format_name == "mxfp4" else tensors[n] for n in names}


def decoded(form: Format, parts: Tensors, dtype: torch.dtype) -> torch.Tensor:
    out = torch.full(form.shape, torch.nan, dtype=dtype)
    form.decode(list(parts.values()), out)
    return out


def assert_same_bits(found: torch.Tensor, wanted: torch.Tensor) -> None:
    whole = {2: torch.int16, 4: torch.int32}[found.element_size()]
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    both_nan = found.isnan() & wanted.isnan()
    differ = (found.contiguous().view(whole) != wanted.contiguous().view(whole)) & ~both_nan
    assert not differ.any(), f"{int(differ.sum())} of {differ.numel()} differ"


def assert_decodes(format_name: str, tensors: Tensors, dtype: torch.dtype) -> None:
    form = form_of(format_name, tensors)
    wanted = reference(name_of(format_name), tensors, format_name, dtype)
    found = decoded(form, parts_of(format_name, form, tensors), dtype)
    assert_same_bits(found, wanted[1] if format_name == "mxfp4" else wanted)


@pytest.mark.parametrize("dtype", COMPUTE_DTYPES, ids=str)
@pytest.mark.parametrize("format_name", FORMATS)
def test_bits_are_those_of_the_formats_own_library(format_name: str, dtype: torch.dtype) -> None:
    assert_decodes(format_name, stored(format_name), dtype)


@pytest.mark.parametrize("format_name", QUANTIZED)
def test_every_code_occurs_above(format_name: str) -> None:
    codes = next(
        tensor
        for name, tensor in stored(format_name).items()
        if name.endswith(("weight", "_packed", "_blocks"))
    ).view(torch.uint8)
    found = set(codes.flatten().tolist())
    assert len(found) == (254 if "fp8" in format_name else 256)


def test_codes_of_nan_are_read_as_480() -> None:
    for code, value in ((0x7F, 480.0), (0xFF, -480.0)):
        tensors = stored("fp8-block")
        tensors[LINEAR].view(torch.uint8)[5, 7] = code
        form = form_of("fp8-block", tensors)
        found = decoded(form, tensors, torch.float32)
        assert found[5, 7] == value * tensors[f"{LINEAR}_scale_inv"][0, 0]


def test_a_scale_that_is_not_a_number_reaches_all_of_its_values() -> None:
    tensors = stored("fp8-block-ue8m0")
    tensors[f"{LINEAR}_scale_inv"].view(torch.uint8)[0, 1] = 255
    found = decoded(form_of("fp8-block-ue8m0", tensors), tensors, torch.bfloat16)
    assert found[:128, 128:].isnan().all()
    assert found[:128, :128].isfinite().all()


@pytest.mark.parametrize("scale", [2.0**-149, 2.0**-126, 2.0**-20, 3e4, 2.0**119])
def test_fp8_scales_of_any_size(scale: float) -> None:
    tensors = stored("fp8-block")
    tensors[f"{LINEAR}_scale_inv"].fill_(scale)
    for dtype in COMPUTE_DTYPES:
        assert_decodes("fp8-block", tensors, dtype)


@pytest.mark.parametrize("bits", range(256))
def test_mxfp4_scales_of_any_size(bits: int) -> None:
    tensors = stored("mxfp4", rows=16, columns=32)
    tensors[f"{FUSED}_scales"].fill_(bits)
    for dtype in COMPUTE_DTYPES:
        assert_decodes("mxfp4", tensors, dtype)


@pytest.mark.parametrize(
    ("rows", "columns"), [(576, 256), (192, 448), (1, 128), (129, 1), (7, 130)]
)
@pytest.mark.parametrize("format_name", ["fp8-block", "fp8-block-ue8m0", "fp8-block-packed"])
def test_fp8_blocks_that_are_cut(format_name: str, rows: int, columns: int) -> None:
    tensors = stored(format_name, rows, columns)
    for dtype in COMPUTE_DTYPES:
        assert_decodes(format_name, tensors, dtype)


def test_the_rows_of_deepseeks_latent_projection() -> None:
    tensors = stored("fp8-block", 576, 7168)
    assert tensors[f"{LINEAR}_scale_inv"].shape == (5, 56)
    assert_decodes("fp8-block", tensors, torch.bfloat16)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(QUANTIZED),
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from(COMPUTE_DTYPES),
    st.integers(0, 1 << 20),
)
def test_any_shape(
    format_name: str, rows: int, columns: int, dtype: torch.dtype, seed: int
) -> None:
    unit = 128 if "g128" in format_name else 32 if "g32" in format_name else 1
    unit = {**dict.fromkeys(FP4, 16), "mxfp4": 32, "mxfp4-packed": 32}.get(format_name, unit)
    columns = max(1, columns // unit) * unit
    # compressed-tensors cannot unpack zero points that fill one word only.
    rows += 8 if "asymmetric" in format_name else 0
    assert_decodes(format_name, stored(format_name, rows, columns, seed), dtype)


def test_other_sizes_of_groups() -> None:
    for group in (8, 64, 256):
        config = quantization_config("int4-g32")
        tensors = stored("int4-g32", 48, 512)
        scale = LINEAR.replace("weight", "weight_scale")
        tensors[scale] = torch.rand(48, 512 // group).to(torch.bfloat16)
        config["config_groups"]["group_0"]["weights"]["group_size"] = group
        form = format_of(LINEAR, header_of(tensors), config)
        found = decoded(form, parts_of("int4-g32", form, tensors), torch.bfloat16)
        tensors[scale] = tensors[scale].repeat_interleave(group // 8, dim=1)
        codes = tensors[LINEAR.replace("weight", "weight_packed")].view(torch.uint8)
        values = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(1).to(torch.bfloat16) - 8
        wanted = values.view(48, -1, 8) * tensors[scale].view(48, -1, 1)
        assert_same_bits(found, wanted.flatten(1))


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("format_name", ["int4-g32-asymmetric", "int4-channel"])
def test_scales_of_other_types(format_name: str, scale_dtype: torch.dtype) -> None:
    columns = 256 if "g32" in format_name else 251
    tensors = stored(format_name, 40, columns)
    scale = LINEAR.replace("weight", "weight_scale")
    tensors[scale] = torch.rand(tensors[scale].shape).to(scale_dtype)
    for dtype in COMPUTE_DTYPES:
        assert_decodes(format_name, tensors, dtype)


def in_a_slot(tensor: torch.Tensor) -> torch.Tensor:
    """Return it inside of a block of bytes, 4 bytes off every larger boundary."""
    nbytes = tensor.numel() * tensor.element_size()
    slot = torch.zeros(nbytes + 16, dtype=torch.uint8)
    view = slot[4 : 4 + nbytes].view(tensor.dtype).view(tensor.shape)
    return view.copy_(tensor)


def at_an_odd_byte(tensor: torch.Tensor) -> torch.Tensor:
    slot = torch.zeros(tensor.numel() * tensor.element_size() + 16, dtype=torch.uint8)
    if tensor.element_size() > 1:
        return tensor
    return slot[1 : 1 + tensor.numel()].view(tensor.dtype).view(tensor.shape).copy_(tensor)


def among_other_columns(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.dim():
        return tensor
    wide = torch.zeros((*tensor.shape[:-1], tensor.shape[-1] + 3), dtype=torch.uint8)
    wide = wide.repeat_interleave(tensor.element_size(), dim=-1).view(tensor.dtype)
    return wide[..., 1:-2].copy_(tensor)


def column_by_column(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor


@pytest.mark.parametrize(
    "placed", [in_a_slot, at_an_odd_byte, among_other_columns, column_by_column]
)
@pytest.mark.parametrize("format_name", FORMATS)
def test_bytes_may_lie_anywhere(
    format_name: str, placed: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    tensors = stored(format_name)
    form = form_of(format_name, tensors)
    parts = parts_of(format_name, form, tensors)
    wanted = decoded(form, parts, torch.bfloat16)
    moved = {name: placed(tensor) for name, tensor in parts.items()}
    assert_same_bits(decoded(form, moved, torch.bfloat16), wanted)
    raw = {n: t.view(torch.uint8) if t.element_size() == 1 else t for n, t in moved.items()}
    assert_same_bits(decoded(form, raw, torch.bfloat16), wanted)
    out = torch.zeros(form.shape[0], form.shape[1] + 1, dtype=torch.bfloat16)[:, 1:]
    form.decode(list(parts.values()), out)
    assert_same_bits(out, wanted)
    transposed = torch.zeros(form.shape[::-1], dtype=torch.bfloat16).T
    form.decode(list(parts.values()), transposed)
    assert_same_bits(transposed, wanted)


@pytest.mark.parametrize("format_name", FORMATS)
def test_everything_happens_on_the_tensors_device(format_name: str) -> None:
    # A device without values: an operation that mixed it with the CPU would fail.
    tensors = stored(format_name)
    form = form_of(format_name, tensors)
    parts = [t.to("meta") for t in parts_of(format_name, form, tensors).values()]
    form.decode(parts, torch.empty(form.shape, dtype=torch.float16, device="meta"))


@pytest.mark.parametrize("format_name", FORMATS)
def test_sizes_are_those_of_the_stored_tensors(format_name: str) -> None:
    tensors = stored(format_name)
    form = form_of(format_name, tensors)
    parts = parts_of(format_name, form, tensors)
    assert form.nbytes == tuple(t.numel() * t.element_size() for t in parts.values())
    assert form.is_decoded(torch.bfloat16) == (format_name == "bf16")


def test_plain_tensors_may_have_any_number_of_dimensions() -> None:
    for shape in ((), (5,), (4, 1, 3)):
        tensors = {"conv.weight": torch.rand(shape, dtype=torch.float32)}
        form = format_of("conv.weight", header_of(tensors))
        assert_same_bits(decoded(form, tensors, torch.float32), tensors["conv.weight"])


def test_work_areas_do_not_grow_with_the_matrix() -> None:
    for format_name in QUANTIZED:
        tensors = stored(format_name, 2048, 512)
        form = form_of(format_name, tensors)
        decoded(form, parts_of(format_name, form, tensors), torch.float16)
    assert work._areas.by_dtype
    assert all(a.numel() <= work.CPU_VALUES for a in work._areas.by_dtype.values())


def test_threads_do_not_share_their_work_areas() -> None:
    tensors = stored("fp8-block", 512, 512)
    form = form_of("fp8-block", tensors)
    wanted = decoded(form, tensors, torch.bfloat16)
    found: list[bool] = []

    def work_in_a_thread() -> None:
        for _ in range(20):
            found.append(torch.equal(decoded(form, tensors, torch.bfloat16), wanted))

    threads = [threading.Thread(target=work_in_a_thread) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 80


def test_areas_of_inference_mode_serve_outside_of_it() -> None:
    tensors = stored("int4-g32")
    form = form_of("int4-g32", tensors)
    parts = parts_of("int4-g32", form, tensors)
    work._areas.by_dtype.clear()
    with torch.inference_mode():
        wanted = decoded(form, parts, torch.bfloat16)
    parameter = torch.nn.Parameter(torch.zeros(form.shape, dtype=torch.bfloat16))
    form.decode(list(parts.values()), parameter)
    assert torch.equal(parameter, wanted)
