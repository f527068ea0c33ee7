"""Which format a weight is stored in: told by which tensors exist, their types and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from localmoe.backends.torch.formats.format import Format, Stored, StoredTensor, stem_of
from localmoe.backends.torch.formats.four_bits import Fp4, Int4
from localmoe.backends.torch.formats.fp8 import Fp8
from localmoe.backends.torch.formats.plain import Plain
from localmoe.backends.torch.formats.scales import Grid
from localmoe.backends.torch.formats.scheme import block_of, check_config, schemes_of
from localmoe.errors import ModelFormatError, UnsupportedModelError

FLOATS = ("BF16", "F16", "F32")
SCALE_SUFFIXES = ("weight_scale_inv", "weight_scale")
NVFP4_GROUP, MXFP4_GROUP, FP8_BLOCK = 16, 32, (128, 128)
# Each would have to be multiplied or permuted into something else than the weight.
BESIDE = ("weight_g_idx", "pre_quant_scale", "bitmask", "meta")


def format_of(
    weight_name: str,
    tensors: Mapping[str, StoredTensor],
    quantization_config: Mapping[str, object] | None = None,
    *,
    stacked: bool = False,
    shape: tuple[int, int] | None = None,
) -> Format:
    """Return how a weight is stored, plain ones included.

    `weight_name` is the name of the whole weight, such as `...up_proj.weight`, whatever tensors
    make it up. `stacked` weights have one matrix per expert in their first dimension, and the
    format is that of one matrix. `shape` is that of the matrix that the model wants, if known: the
    stored one is checked against it. Raises ModelFormatError where tensors and config cannot be
    true together, UnsupportedModelError where they are of a kind that is not decoded.
    """
    config = quantization_config or {}
    check_config(config)
    header = _Header(weight_name, tensors, config, stacked, shape)
    for suffix in BESIDE:
        if header.has(f".{suffix}"):
            raise UnsupportedModelError(
                f"{header.name} is stored with a tensor {suffix!r}, which is not understood. "
                "Take another quantization of the model."
            )
    form = _recognise(header)
    if shape is not None and form.shape != tuple(shape):
        raise header.wrong(f"a matrix of shape {tuple(shape)} for the model", f"{form.shape}")
    return form


@dataclass(frozen=True)
class _Header:
    """The stored tensors whose names begin with that of one weight."""

    name: str
    tensors: Mapping[str, StoredTensor]
    config: Mapping[str, object]
    stacked: bool
    wanted: tuple[int, int] | None

    def has(self, suffix: str) -> bool:
        return stem_of(self.name) + suffix in self.tensors

    def one(self, suffix: str, *dtypes: str) -> Stored:
        """Return a tensor of one matrix; its type is one of these."""
        full = stem_of(self.name) + suffix
        found = self.tensors.get(full)
        if found is None:
            raise self.wrong(f"a tensor {full}", "none")
        if dtypes and found.dtype not in dtypes:
            raise self.wrong(f"{full} in {' or '.join(dtypes)}", found.dtype)
        shape = tuple(found.shape)
        if self.stacked:
            if not shape:
                raise self.wrong(f"{full} with one matrix per expert", "a single value")
            shape = shape[1:]
        return Stored(suffix, found.dtype, shape)

    def matrix(self, suffix: str, *dtypes: str) -> tuple[Stored, int, int]:
        """Return a tensor of two dimensions and its rows and columns."""
        stored = self.one(suffix, *dtypes)
        if len(stored.shape) != 2 or 0 in stored.shape:
            raise self.wrong("a matrix of rows and columns", f"shape {stored.shape}")
        return stored, stored.shape[0], stored.shape[1]

    def scale(self, suffix: str, wanted: tuple[int, ...], *dtypes: str) -> Stored:
        """Return a tensor of scales; it has exactly this shape."""
        stored = self.one(suffix, *dtypes)
        if stored.shape != wanted:
            raise self.wrong(f"{suffix.lstrip('._')} of shape {wanted}", f"{stored.shape}")
        return stored

    def single(self, suffix: str) -> Stored:
        """Return a tensor that holds one F32."""
        stored = self.one(suffix, "F32")
        if stored.shape not in ((), (1,)):
            raise self.wrong(f"a single {suffix.lstrip('.')}", f"shape {stored.shape}")
        return stored

    def wrong(self, wanted: str, found: str) -> ModelFormatError:
        return ModelFormatError(
            f"{self.name}: expected {wanted}, found {found}. Check that config.json and the "
            "weights are of one model and complete; download them again if need be."
        )


def _recognise(header: _Header) -> Format:
    if header.has(".weight_packed"):
        packed = header.one(".weight_packed", "I32", "U8")
        return _int4(header) if packed.dtype == "I32" else _packed_fp4(header)
    if header.has("_blocks"):
        return _gpt_oss(header)
    return _unpacked(header)


def _unpacked(header: _Header) -> Format:
    suffix = ".weight" if header.name.endswith(".weight") else ""
    if not header.has(suffix):
        method = header.config.get("quant_method", "none")
        raise UnsupportedModelError(
            f"no tensors of {header.name} in a format that is decoded (quant_method: "
            f"{str(method)[:40]}). Take a BF16, FP8, compressed-tensors, NVFP4 or MXFP4 checkpoint."
        )
    weight = header.one(suffix)
    if weight.dtype == "F8_E4M3":
        return _fp8(header, suffix)
    if weight.dtype == "U8" and header.has(".weight_scale_2"):
        return _modelopt_fp4(header)
    if weight.dtype not in FLOATS:
        raise UnsupportedModelError(
            f"{header.name} is stored in {weight.dtype}, which is not decoded. "
            "Take a BF16, FP8, compressed-tensors, NVFP4 or MXFP4 checkpoint."
        )
    if any(header.has(f".{scale}") for scale in SCALE_SUFFIXES):
        raise header.wrong("no scales beside a weight that is not quantized", "some")
    return Plain(weight.shape, (weight,))


def _check_symmetric(header: _Header) -> None:
    if header.has(".weight_zero_point"):
        raise UnsupportedModelError(
            f"{header.name} has zero points for codes that are not INT4. "
            "Take a symmetric quantization of the model."
        )


def _fp8(header: _Header, suffix: str) -> Fp8:
    _check_symmetric(header)
    weight, rows, columns = header.matrix(suffix, "F8_E4M3")
    ends = [f".{end}" if suffix else end.removeprefix("weight") for end in SCALE_SUFFIXES]
    found = [end for end in ends if header.has(end)]
    if len(found) != 1:
        raise header.wrong(f"one of {' and '.join(ends)}", f"{len(found)}")
    scale = header.one(found[0], *FLOATS, "F8_E8M0", "U8")
    grid = _fp8_grid((rows, columns), scale.shape, block_of(header.config))
    if grid is None:
        block = block_of(header.config) or FP8_BLOCK
        raise header.wrong(
            f"a scale per tensor, per row or per block of {block[0]}x{block[1]} of "
            f"{rows}x{columns} values",
            f"scales of shape {scale.shape}",
        )
    return Fp8((rows, columns), (weight, scale), grid)


def _fp8_grid(
    shape: tuple[int, int], scales: tuple[int, ...], block: tuple[int, int] | None
) -> Grid | None:
    rows, columns = shape
    grids = [Grid(shape, *(block or FP8_BLOCK)), Grid(shape, 1, columns)]
    if block is None and columns % MXFP4_GROUP == 0:
        grids.append(Grid(shape, 1, MXFP4_GROUP))
    for grid in grids:
        if scales == grid.counts and (grid.rows > 1 or columns % grid.columns == 0):
            return grid
    if scales in ((), (1,), (1, 1)):
        return Grid(shape, rows, columns)
    return Grid(shape, 1, columns) if scales == (rows,) else None


def _int4(header: _Header) -> Int4:
    packed, rows, words = header.matrix(".weight_packed", "I32")
    scale, scale_rows, groups = header.matrix(".weight_scale", *FLOATS)
    schemes = [scheme for scheme in schemes_of(header.config) if scheme.kind == "int"]
    if not schemes:
        raise header.wrong("a config group with weights of type int", "none in config.json")
    if header.has(".weight_shape"):
        header.scale(".weight_shape", (2,), "I64", "I32")
    wanted = header.wanted[1] if header.wanted else words * 8
    for scheme in schemes:
        columns = groups * scheme.group if scheme.group else wanted
        known = scheme.strategy in ("group", "channel") and (scheme.group or groups == 1)
        fits = scale_rows == rows and -(-columns * scheme.bits // 32) == words
        if known and fits and scheme.symmetric != header.has(".weight_zero_point"):
            break
    else:
        raise header.wrong(
            f"codes and scales as in a config group ({schemes[0]})",
            f"{packed.shape} words, {scale.shape} scales and "
            f"{'' if header.has('.weight_zero_point') else 'no '}zero points",
        )
    if scheme.bits != 4:
        raise UnsupportedModelError(
            f"{header.name} is packed in {scheme.bits} bits; 4 are decoded. "
            "Take another quantization of the model."
        )
    stored = [packed, scale]
    if not scheme.symmetric:
        stored.append(header.scale(".weight_zero_point", (-(-rows // 8), groups), "I32"))
    grid = Grid((rows, columns), 1, scheme.group or columns)
    return Int4((rows, columns), tuple(stored), grid)


def _packed_fp4(header: _Header) -> Fp4:
    _check_symmetric(header)
    packed, rows, half = header.matrix(".weight_packed", "U8")
    shape = (rows, 2 * half)
    if header.has(".weight_global_scale"):
        scale = _group_scales(header, ".weight_scale", shape, NVFP4_GROUP, "F8_E4M3")
        whole = header.single(".weight_global_scale")
        grid = Grid(shape, 1, NVFP4_GROUP)
        return Fp4(shape, (packed, scale, whole), grid, divides=True, to_bfloat16=True)
    scale = _group_scales(header, ".weight_scale", shape, MXFP4_GROUP, "U8", "F8_E8M0")
    return Fp4(shape, (packed, scale), Grid(shape, 1, MXFP4_GROUP), to_bfloat16=True)


def _modelopt_fp4(header: _Header) -> Fp4:
    packed, rows, half = header.matrix(".weight", "U8")
    shape = (rows, 2 * half)
    scale = _group_scales(header, ".weight_scale", shape, NVFP4_GROUP, "F8_E4M3")
    whole = header.single(".weight_scale_2")
    return Fp4(shape, (packed, scale, whole), Grid(shape, 1, NVFP4_GROUP))


def _group_scales(
    header: _Header, suffix: str, shape: tuple[int, int], group: int, *dtypes: str
) -> Stored:
    if shape[1] % group:
        raise header.wrong(f"rows of whole groups of {group} values", f"{shape[1]} values")
    return header.scale(suffix, (shape[0], shape[1] // group), *dtypes)


def _gpt_oss(header: _Header) -> Fp4:
    blocks = header.one("_blocks", "U8")
    if len(blocks.shape) != 3 or blocks.shape[2] * 2 != MXFP4_GROUP or 0 in blocks.shape:
        raise header.wrong("blocks of shape [rows, groups, 16]", f"{blocks.shape}")
    rows, groups, _ = blocks.shape
    scale = header.scale("_scales", (rows, groups), "U8")
    shape = (rows, groups * MXFP4_GROUP)
    grid = Grid(shape, 1, MXFP4_GROUP)
    return Fp4((shape[1], shape[0]), (blocks, scale), grid, transposed=True)
