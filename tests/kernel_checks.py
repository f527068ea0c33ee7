"""What tests ask of packed kernels. Runs where Triton interprets: see interpreted.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from localmoe.backends.torch.formats.tables import FOUR_BITS, scale_values
from localmoe.backends.torch.kernels import codes, find_kernel, products
from localmoe.backends.torch.kernels.layout import Layout, Region, Scales, Tile
from localmoe.backends.torch.kernels.packed import PackedKernel
from localmoe.backends.torch.slot_weights import Place
from zoo_torch.parts import Shape, SlottedPart, make_part

CPU = torch.device("cpu")
PRECISION = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}


def kernel_of(part: SlottedPart) -> PackedKernel:
    found = find_kernel(part.sources, part.place, CPU, is_transposed=part.shape.is_transposed)
    assert found.kernel is not None, found.reason
    return found.kernel


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def assert_same_bits(found: Tensor, wanted: Tensor) -> None:
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    # Zeros that were added to a zero have lost its sign.
    differ = (found != wanted) & ~(found.isnan() & wanted.isnan())
    assert not differ.any(), f"{int(differ.sum())} of {differ.numel()} differ"


def check_weights(shape: Shape) -> None:
    """One input of 1 among zeros gives a column of the matrix, exactly as it is decoded.

    Some columns: that every one is used, and where it lies, is in what `check_products` adds up.
    """
    part = make_part(shape, slots=2)
    matrix, last = part.matrix(1), shape.columns - 1
    assert matrix.isfinite().all()
    columns = sorted({0, 1, last // 2, last})
    x = torch.eye(shape.columns, dtype=shape.dtype)[columns]
    rows = torch.arange(len(columns), dtype=torch.int32)
    found = kernel_of(part).multiply(part.memory, x, torch.ones_like(rows), rows)
    assert_same_bits(found, matrix.T[columns])


def check_products(shape: Shape) -> None:
    """Products are those of the decoded matrix, but for the order in which F32 is added up."""
    part, pairs = make_part(shape, slots=2), ((1, 0), (0, 1))
    x = torch.randn(2, shape.columns).to(shape.dtype)
    slots, rows = (int32(*each) for each in zip(*pairs, strict=True))
    found = kernel_of(part).multiply(part.memory, x, slots, rows)
    assert found.shape == (len(pairs), shape.pieces * shape.rows)
    for product, (slot, row) in zip(found, pairs, strict=True):
        matrix, bias, vector = part.matrix(slot).double(), part.bias(slot), x[row].double()
        exact, size = matrix @ vector, matrix.abs() @ vector.abs()
        allowed = 2e-6 * size + PRECISION[shape.dtype] * exact.abs()
        if bias is not None:
            exact = exact + bias.double()
            allowed += PRECISION[shape.dtype] * exact.abs()
        worst = ((product.double() - exact).abs() - allowed).max()
        assert worst <= 0, f"beyond what adding up explains by {worst}"


def check_bits(shape: Shape) -> None:
    """A product has the same bits whatever the slot, the row and the other pairs are."""
    part = make_part(shape)
    kernel, place, x = kernel_of(part), part.place, torch.randn(2, shape.columns).to(shape.dtype)
    slots, rows = int32(2, 0, 1, 2), int32(0, 1, 0, 1)
    many = kernel.multiply(part.memory, x, slots, rows)
    for pair in (0, 3):
        alone = kernel.multiply(part.memory, x, slots[pair : pair + 1], rows[pair : pair + 1])
        assert_same_bits(alone[0], many[pair])
    # The same experts in other slots, further apart, and vectors at an odd place.
    wide = Place(place.start + 32, place.stride + 48, place.slots)
    memory = torch.full((place.start + wide.stride * 4,), 255, dtype=torch.uint8)
    for slot in range(place.slots):
        old = place.start + slot * place.stride
        new = wide.start + (slot + 1) % 3 * wide.stride
        memory[new : new + place.stride] = part.memory[old : old + place.stride]
    other = find_kernel(part.sources, wide, CPU, is_transposed=shape.is_transposed).kernel
    assert other is not None
    x = torch.cat([x.new_zeros(1), x.flip(0).flatten()])[1:].view(x.shape)
    assert x.data_ptr() % 16
    assert_same_bits(other.multiply(memory, x, (slots + 1) % 3, 1 - rows), many)


def check_nothing_but_bias(shape: Shape) -> None:
    part = make_part(shape)
    x = torch.zeros(1, shape.columns, dtype=shape.dtype)
    found = kernel_of(part).multiply(part.memory, x, int32(2, 0), int32(0, 0))
    for product, slot in zip(found, (2, 0), strict=True):
        bias = part.bias(slot)
        assert bias is not None
        assert_same_bits(product, bias)


def check_no_pairs() -> None:
    part = make_part(Shape("fp8-block", 8, 32))
    x = torch.zeros(1, 32, dtype=torch.bfloat16)
    assert kernel_of(part).multiply(part.memory, x, int32(), int32()).shape == (0, 8)


@triton.jit
def addresses(memory, stride, pairs, x, out, LAYOUT: tl.constexpr):
    slot, base, row, pair, inputs = products.places(memory, stride, pairs, x, LAYOUT)
    place = (pair * LAYOUT.row_tiles * LAYOUT.pieces + tl.program_id(0)) * 4
    tl.store(out + place, slot.to(tl.int64))
    tl.store(out + place + 1, base.to(tl.int64))
    tl.store(out + place + 2, tl.max(row, axis=0).to(tl.int64))
    tl.store(out + place + 3, inputs.to(tl.int64))


def check_addresses() -> None:
    """Slots, pieces and vectors are found beyond what 32 bits reach; nothing is read there."""
    columns, tile = 1 << 20, Tile(1 << 12, 512, 128)
    region = Region(0, "E4M3", 16)
    piece_nbytes, stride = (columns << 12) + (1 << 14), 9 << 30
    layout = Layout(
        *(1 << 12, columns, 2, piece_nbytes, region, (columns, 1), "BF16", tile),
        scales=Scales(Region(columns << 12, "F32", 16), 128, 128, columns // 128),
    )
    slots, rows = int32(0, 77_000), int32(1, 2_000_000)
    memory, x = torch.zeros(1, dtype=torch.uint8), torch.zeros(1, dtype=torch.bfloat16)
    out = torch.empty(2, 2, 4, dtype=torch.int64)
    addresses[(2, 2)](memory, stride, (slots, rows), x, out, layout)
    for pair, (slot, row) in enumerate(zip(slots.tolist(), rows.tolist(), strict=True)):
        for piece in range(2):
            start = memory.data_ptr() + slot * stride
            assert out[pair, piece].tolist() == [
                start,
                start + piece * piece_nbytes,
                (1 << 12) - 1,
                x.data_ptr() + 2 * row * columns,
            ]


@triton.jit
def all_codes(bytes_in, out, KIND: tl.constexpr):
    place = tl.arange(0, 256)
    found = tl.load(bytes_in + place).to(tl.uint32)
    if KIND == "E4M3":
        values = codes.e4m3_values(found)
    elif KIND == "e2m1":
        values = codes.e2m1_values(found, False)
    elif KIND == "doubled":
        values = codes.e2m1_values(found >> 4, True)
    elif KIND == "int4":
        values = codes.int4_values(found)
    elif KIND == "halved":
        values = codes.exponents(found, True)
    else:
        values = codes.exponents(found, False)
    tl.store(out + place, values)


def check_codes(kind: str) -> None:
    """Every byte becomes the value that formats/ has for it."""
    every, out = torch.arange(256, dtype=torch.uint8), torch.empty(256)
    all_codes[(1,)](every, out, kind)
    if kind in FOUR_BITS:
        index = (every >> 4 if kind == "doubled" else every & 15).long()
        wanted = torch.tensor(FOUR_BITS[kind])[index]
    elif kind == "E4M3":
        wanted = every.view(torch.float8_e4m3fn).float() / 256
        wanted[0x7F], wanted[0xFF] = 480 / 256, -480 / 256
    else:
        wanted = scale_values(kind, CPU)
    assert torch.equal(out.view(torch.int32), wanted.view(torch.int32))
