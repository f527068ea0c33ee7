"""Stores weights in every format that is decoded, with the library that defines the format.

    tensors = store("model.layers.0.mlp.experts.3.up_proj.weight", weight, "int4-g32")
    config["quantization_config"] = quantization_config("int4-g32")

compressed-tensors and transformers write theirs. By hand are MXFP4 as gpt-oss has it and ModelOpt's
formats (their libraries want a GPU, or 200 MB), and FP8 in blocks that do not divide the matrix,
which transformers leaves unquantized.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from transformers.integrations.finegrained_fp8 import Fp8Quantize

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E4M3_MAX, E2M1_MAX = 448.0, 6.0
PLAIN = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


@dataclass(frozen=True)
class Packed:
    """A format of compressed-tensors: its name there, and the arguments of its weights."""

    form: str
    weights: dict[str, Any]

    @property
    def scheme(self) -> QuantizationScheme:
        args = QuantizationArgs(**self.weights)
        return QuantizationScheme(targets=["Linear"], weights=args, format=self.form)


def _integers(strategy: str = "group", symmetric: bool = True, **more: Any) -> Packed:
    weights = {"num_bits": 4, "type": "int", "strategy": strategy, "symmetric": symmetric, **more}
    return Packed("pack-quantized", weights)


def _floats(form: str, bits: int, strategy: str, **more: Any) -> Packed:
    return Packed(form, {"num_bits": bits, "type": "float", "strategy": strategy, **more})


COMPRESSED = {
    "int4-g32": _integers(group_size=32),
    "int4-g128": _integers(group_size=128),
    "int4-g32-asymmetric": _integers(group_size=32, symmetric=False),
    "int4-channel": _integers("channel"),
    "int4-channel-asymmetric": _integers("channel", symmetric=False),
    "nvfp4": _floats("nvfp4-pack-quantized", 4, "tensor_group", group_size=16),
    "mxfp4-packed": _floats(
        *("mxfp4-pack-quantized", 4, "group"), group_size=32, scale_dtype="torch.uint8"
    ),
    "fp8-channel": _floats("float-quantized", 8, "channel"),
    "fp8-tensor": _floats("float-quantized", 8, "tensor"),
    "fp8-block-packed": _floats("float-quantized", 8, "block", block_structure=[128, 128]),
}
FP8 = {"fp8-block": "float", "fp8-block-ue8m0": "ue8m0"}
BY_HAND = ("nvfp4-modelopt", "fp8-modelopt", "mxfp4")
FORMATS = (*PLAIN, *FP8, *COMPRESSED, *BY_HAND)


def store(name: str, weight: torch.Tensor, format_name: str) -> dict[str, torch.Tensor]:
    """Return the stored tensors of a weight [rows, columns], by their full names.

    `mxfp4` takes what gpt-oss computes with, [experts, in, out], under a name without `.weight`.
    """
    if format_name in PLAIN:
        return {name: weight.to(PLAIN[format_name])}
    if format_name in FP8:
        return _fp8_blocks(name, weight, FP8[format_name])
    if format_name == "mxfp4":
        blocks, scales = mxfp4_blocks(weight.transpose(-1, -2))
        return {f"{name}_blocks": blocks, f"{name}_scales": scales}
    stem = name.removesuffix(".weight")
    if format_name in COMPRESSED:
        made = compress(weight, COMPRESSED[format_name])
    elif format_name == "nvfp4-modelopt":
        made = _modelopt_fp4(weight)
    else:
        scale = weight.float().abs().amax() / E4M3_MAX
        codes = (weight.float() / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
        made = {"weight": codes, "weight_scale": scale}
    # Strides as a file has them; `contiguous` keeps odd ones of a single column.
    kept = torch.contiguous_format
    return {f"{stem}.{end}": tensor.clone(memory_format=kept) for end, tensor in made.items()}


def quantization_config(format_name: str) -> dict[str, Any]:
    """Return what config.json says of a checkpoint in this format; empty if it is plain."""
    if format_name in PLAIN:
        return {}
    if format_name == "mxfp4":
        return {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    if format_name in FP8:
        return {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
            **({"scale_fmt": "ue8m0"} if FP8[format_name] == "ue8m0" else {}),
        }
    if format_name in COMPRESSED:
        packed = COMPRESSED[format_name]
        group = {"targets": ["Linear"], "weights": packed.weights, "format": packed.form}
        return {
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
            "format": packed.form,
            "config_groups": {"group_0": group},
            "ignore": ["lm_head"],
        }
    algorithm = {"nvfp4-modelopt": "NVFP4", "fp8-modelopt": "FP8"}[format_name]
    return {"quant_method": "modelopt", "quant_algo": algorithm, "ignore": ["lm_head"]}


def compress(weight: torch.Tensor, packed: Packed) -> dict[str, torch.Tensor]:
    """Return what compressed-tensors stores of a weight, with scales from its extremes."""
    scheme = packed.scheme
    args = scheme.weights
    state: dict[str, torch.Tensor] = {"weight": weight}
    blocks = _by_scale(weight, args)  # [..., values of one scale]
    extremes = {"min_vals": blocks.amin(-1), "max_vals": blocks.amax(-1)}
    if args.strategy == "tensor_group":
        whole = E4M3_MAX * E2M1_MAX / weight.float().abs().amax().reshape(1)
        state["weight_global_scale"] = extremes["global_scale"] = whole
    scale, zero = calculate_qparams(quantization_args=args, **extremes)
    state["weight_scale"] = scale if packed.form.startswith("nv") else scale.to(weight.dtype)
    if not args.symmetric:
        state["weight_zero_point"] = zero
    compressor = BaseCompressor.get_value_from_registry(packed.form)
    return dict(compressor.compress(state, scheme))


def _by_scale(weight: torch.Tensor, args: QuantizationArgs) -> torch.Tensor:
    rows, columns = weight.shape
    if args.strategy == "tensor":
        return weight.reshape(1, -1)
    if args.strategy == "channel":
        return weight.reshape(rows, 1, columns)
    if args.strategy == "block":
        return _blocks(weight)
    return weight.reshape(rows, -1, args.group_size)


def _blocks(weight: torch.Tensor, side: int = 128) -> torch.Tensor:
    """Return [blocks down, blocks across, values], the last ones filled up with zeros."""
    rows, columns = weight.shape
    full = torch.nn.functional.pad(weight, (0, -columns % side, 0, -rows % side))
    four = full.view(full.shape[0] // side, side, full.shape[1] // side, side)
    return four.transpose(1, 2).flatten(2)


def _fp8_blocks(name: str, weight: torch.Tensor, scale_format: str) -> dict[str, torch.Tensor]:
    config = SimpleNamespace(weight_block_size=(128, 128), scale_fmt=scale_format)
    quantizer = Fp8Quantize(SimpleNamespace(quantization_config=config))
    rows, columns = weight.shape
    full = torch.nn.functional.pad(weight, (0, -columns % 128, 0, -rows % 128))
    made: dict[str, torch.Tensor] = quantizer.convert({name: full})
    return {**made, name: made[name][:rows, :columns].contiguous()}


def _modelopt_fp4(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """As ModelOpt's NVFP4QTensor does it."""
    whole = weight.float().abs().amax() / (E2M1_MAX * E4M3_MAX)
    groups = weight.float().view(weight.shape[0], -1, 16)
    scale = groups.abs().amax(-1) / (E2M1_MAX * whole)
    scale = torch.where(scale == 0, 1.0, scale).clamp(2**-9, E4M3_MAX).to(torch.float8_e4m3fn)
    codes = e2m1_codes(groups / (scale.float() * whole)[..., None]).flatten(-2)
    return {"weight": pack(codes), "weight_scale": scale, "weight_scale_2": whole}


def mxfp4_blocks(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return blocks [..., groups, 16] and scales [..., groups] as gpt-oss stores a weight."""
    groups = weight.float().reshape(*weight.shape[:-1], -1, 32)
    largest = groups.abs().amax(-1).clamp(min=2.0**-120)
    exponent = torch.floor(torch.log2(largest)) - 2  # 4 = 2^2 is the largest power of two of E2M1
    codes = e2m1_codes(groups / torch.exp2(exponent)[..., None])
    return pack(codes), (exponent + 127).to(torch.uint8)


def e2m1_codes(values: torch.Tensor) -> torch.Tensor:
    """Return the codes of the nearest values that E2M1 has; ties go to the even code."""
    table = torch.tensor(E2M1)
    bounds = (table[1:] + table[:-1]) / 2
    sizes = values.abs().contiguous()
    below = torch.bucketize(sizes, bounds, right=False)
    above = torch.bucketize(sizes, bounds, right=True)
    codes = torch.where(below % 2 == 0, below, above).to(torch.uint8)
    return codes | (torch.signbit(values).to(torch.uint8) << 3)


def pack(codes: torch.Tensor) -> torch.Tensor:
    """Return two 4-bit codes per byte, the first one low."""
    return codes[..., 0::2] | codes[..., 1::2] << 4
