"""Packed kernels, interpreted: weights to the bit, products but for the order of adding up."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from interpreted import Interpreter
from localmoe.backends.torch.kernels import find_kernel
from localmoe.backends.torch.kernels.layout import Layout, tile_of
from localmoe.backends.torch.kernels.recognition import Refusal, layout_of
from zoo_torch.formats import FORMATS
from zoo_torch.parts import Shape, make_part

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
CPU = torch.device("cpu")
UNIT = {"int4-g128": 128, "int4-g32-asymmetric": 32}
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton has no wheel for this system"
)


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Interpreter]:
    """Return the process in which kernels are interpreted."""
    found = Interpreter()
    yield found
    found.close()


def shape_of(format_name: str, rows: int, columns: int, **more: Any) -> Shape:
    is_transposed = format_name == "mxfp4"
    return Shape(format_name, rows, columns, is_transposed=is_transposed, **more)


@needs_triton
@pytest.mark.parametrize("format_name", FORMATS)
def test_weights_are_those_that_are_decoded(interpreter: Interpreter, format_name: str) -> None:
    shape = shape_of(format_name, 24, UNIT.get(format_name, 64))
    interpreter.run("kernel_checks.check_weights", shape)


@needs_triton
@pytest.mark.parametrize("dtype", [F16, F32], ids=str)
@pytest.mark.parametrize("format_name", ["f32", "fp8-block", "int4-g32", "nvfp4", "mxfp4"])
def test_weights_in_other_compute_types(
    interpreter: Interpreter, format_name: str, dtype: torch.dtype
) -> None:
    interpreter.run("kernel_checks.check_weights", shape_of(format_name, 16, 32, dtype=dtype))


@needs_triton
@pytest.mark.parametrize("kind", ["E4M3", "e2m1", "doubled", "int4", "halved", "U8"])
def test_every_code(interpreter: Interpreter, kind: str) -> None:
    interpreter.run("kernel_checks.check_codes", kind)


LARGER = (
    Shape("fp8-block", 130, 192, pieces=2),  # blocks that are cut on both sides
    Shape("fp8-block-ue8m0", 20, 300),
    Shape("fp8-channel", 20, 192, pieces=2),
    Shape("int4-g32", 20, 1056),
    Shape("int4-g128", 20, 256, pieces=2),
    Shape("int4-channel-asymmetric", 20, 136),
    Shape("nvfp4", 12, 1040),
    Shape("nvfp4-modelopt", 40, 128, pieces=2, dtype=F16),
    Shape("mxfp4-packed", 40, 128, dtype=F32),
    shape_of("mxfp4", 20, 1120, bias=BF16),
    Shape("bf16", 20, 300, bias=BF16),
    Shape("bf16", 70, 40, bias=F32, is_transposed=True),
    Shape("f32", 20, 30, dtype=F16, is_transposed=True),
    Shape("f16", 17, 96, dtype=F32, pieces=2, bias=F16),
)
ODD_PLACES = (
    Shape("fp8-tensor", 7, 9, pieces=2, bias=BF16),
    Shape("fp8-channel", 5, 11, pieces=2, bias=F32),
    Shape("nvfp4", 3, 48, pieces=2, bias=F16),
    Shape("int4-g32-asymmetric", 9, 32, pieces=2, bias=BF16),
    Shape("f32", 3, 5, dtype=F32, pieces=3, bias=F16),
)
"""Scales and biases at places that their type does not divide, tiles beyond rows and columns."""


@needs_triton
@pytest.mark.parametrize("shape", LARGER + ODD_PLACES, ids=str)
def test_products(interpreter: Interpreter, shape: Shape) -> None:
    interpreter.run("kernel_checks.check_products", shape)


@needs_triton
@pytest.mark.parametrize("shape", ODD_PLACES, ids=str)
def test_weights_and_biases_at_odd_places(interpreter: Interpreter, shape: Shape) -> None:
    interpreter.run("kernel_checks.check_weights", replace(shape, bias=None))
    interpreter.run("kernel_checks.check_biases", shape)


@needs_triton
def test_a_bias_is_added_where_the_model_adds_it(interpreter: Interpreter) -> None:
    shape = Shape("bf16", 24, 64, bias=BF16, is_transposed=True)
    interpreter.run("kernel_checks.check_biases", shape)


@needs_triton
@pytest.mark.parametrize(
    "shape",
    [
        Shape("bf16", 70, 40, bias=BF16, is_transposed=True),
        Shape("fp8-block", 12, 300, pieces=2),
        Shape("int4-g32", 12, 544),
    ],
    ids=str,
)
def test_bits_do_not_depend_on_slots_and_pairs(interpreter: Interpreter, shape: Shape) -> None:
    interpreter.run("kernel_checks.check_bits", shape)


@needs_triton
def test_no_pairs_are_no_products(interpreter: Interpreter) -> None:
    interpreter.run("kernel_checks.check_no_pairs")


@needs_triton
def test_slots_beyond_what_32_bits_reach(interpreter: Interpreter) -> None:
    interpreter.run("kernel_checks.check_addresses")


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("format_name", ["bf16", "int4-g128", "nvfp4"])
def test_what_a_gpu_would_be_given(
    format_name: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton

    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    triton_code, gpu_code = compile_for(capability, Shape(format_name, 64, 1024))
    places = re.findall(
        r"tt.addptr .*tensor<\d+x\d+x.*!tt.ptr<i\d+>>, tensor<.*xi(\d+)>", triton_code
    )
    assert set(places) == {"64"}
    assert "ld.global.v4" in gpu_code  # 16 bytes at once
    for inexact in (".ftz", ".approx", "div.full", "atom.", "red.global"):
        assert inexact not in gpu_code
    assert ("div.rn.f32" in gpu_code) == (format_name == "nvfp4")
    assert "cvt.rn.bf16" in gpu_code


@needs_triton
@pytest.mark.parametrize(("rows", "widest"), [(8, "32"), (7, "8")])
def test_what_lies_at_odd_places_is_read_byte_by_byte(
    rows: int, widest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton

    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    # F32 scales at 8 * 8 and 7 * 9, and a bias behind them; inputs are loads of 16 bits.
    shape = Shape("fp8-channel", rows, 8 if rows == 8 else 9, bias=F32)
    triton_code, _ = compile_for(90, shape)
    loads = re.findall(r"tt.load .*tensor<.*!tt.ptr<i(\d+)>>", triton_code)
    assert max((each for each in loads if each != "16"), key=int) == widest


def compile_for(capability: int, shape: Shape) -> tuple[str, str]:
    """Return what Triton makes of a kernel for NVIDIA's GPUs: its own code, and PTX."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from localmoe.backends.torch.kernels import products

    layout = layout_of(make_part(shape, slots=1).sources, shape.is_transposed)
    assert isinstance(layout, Layout)
    source = ASTSource(
        products.multiply_plain if layout.is_plain else products.multiply_coded,
        {
            **{"memory": "*u8", "stride": "i32", "pairs": ("*i32", "*i32")},
            **{"x": "*bf16", "out": "*bf16", "LAYOUT": "constexpr"},
        },
        {(5,): layout},
        {(argument,): [["tt.divisibility", 16]] for argument in (0, 1, 3, 4)},
    )
    found = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    return found.asm["ttir"], found.asm["ptx"]


def refusal_of(shape: Shape, is_transposed: bool | None = None, **changes: Any) -> str:
    """Return why a part, of which something was changed, has no layout that a kernel knows."""
    matrix, *bias = make_part(shape, slots=1).sources
    sources = [replace(matrix, **changes), *bias]
    found = layout_of(sources, shape.is_transposed if is_transposed is None else is_transposed)
    assert isinstance(found, Refusal)
    return found.reason


def test_what_has_no_kernel_says_why() -> None:
    plain, coded = Shape("bf16", 8, 32), Shape("fp8-block", 8, 32)
    converter: Any = object()
    assert "another order" in refusal_of(plain, converter=converter)
    assert "no matrix" in refusal_of(plain, dtype=torch.float64)
    assert "other side" in refusal_of(coded, is_transposed=True)
    assert "other side" in refusal_of(shape_of("mxfp4", 8, 32), is_transposed=False)
    assert "made of 2 tensors" in refusal_of(replace(plain, pieces=2), is_transposed=True)
    unlike = make_part(plain).sources[0].weights[0] + make_part(coded).sources[0].weights[0]
    assert "unlike" in refusal_of(replace(plain, pieces=2), weights=(unlike,))


def test_a_bias_of_another_length_has_no_kernel() -> None:
    matrix, _ = make_part(Shape("bf16", 8, 32, bias=BF16)).sources
    _, bias = make_part(Shape("bf16", 9, 32, bias=BF16)).sources
    found = layout_of([matrix, bias], is_transposed=False)
    assert isinstance(found, Refusal)
    assert "no bias of 8" in found.reason


def test_a_device_without_kernels_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    part = make_part(Shape("bf16", 8, 32))
    found = find_kernel(part.sources, part.place, CPU)
    assert found.kernel is None
    assert "this one is cpu" in found.reason
    monkeypatch.setitem(sys.modules, "triton", None)
    found = find_kernel(part.sources, part.place, torch.device("cuda"))
    assert found.kernel is None
    assert "localmoe[cuda]" in found.reason


@pytest.mark.parametrize(
    ("columns", "bits", "group", "wanted"),
    [
        (2048, 8, 128, (16, 256, 128)),
        (2048, 4, 32, (16, 512, 32)),
        (2880, 4, 32, (16, 512, 32)),  # 64 at once would be less than memory hands out
        (768, 4, 16, (32, 256, 16)),
        (448, 8, 448, (64, 64, 64)),
        (2048, 4, 24, (16, 512, 8)),  # units of a group of 24
        (5, 16, None, (256, 8, 8)),
    ],
)
def test_tiles(columns: int, bits: int, group: int | None, wanted: tuple[int, int, int]) -> None:
    assert tuple(tile_of(columns, bits, group)) == wanted
