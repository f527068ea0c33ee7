"""Writes checkpoints of Trinity Large's true shape, with fewer layers, as they would be published.

Weights are random, and the same numbers come again: what they are does not change how fast they
are moved and multiplied. Only routed experts are stored in 8 or 4 bits.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from byte_tokenizer import write_byte_tokenizer
from transformers import AfmoeConfig, AfmoeForCausalLM

LARGE: dict[str, Any] = {
    "vocab_size": 200192,
    "hidden_size": 3072,
    "intermediate_size": 12288,
    "moe_intermediate_size": 3072,
    "num_experts": 256,
    "num_local_experts": 256,
    "num_experts_per_tok": 4,
    "num_shared_experts": 1,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "route_scale": 2.448,
    "sliding_window": 4096,
    "mup_enabled": True,
    "num_dense_layers": 1,
}
TINY = {
    **LARGE,
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 256,
    "moe_intermediate_size": 128,
    "num_experts": 16,
    "num_local_experts": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "sliding_window": 64,
}
FORMATS = ("bf16", "fp8", "int4")
_BLOCK, _GROUP = 128, 32
_POOL_NBYTES = 32 << 20
_WIDTH = 0.02
"""Of the random weights: what models begin their training with."""


@dataclass(frozen=True)
class Piece:
    """One tensor to be written: its bytes are taken from `pool`, from the beginning again."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pool: str

    @property
    def nbytes(self) -> int:
        """Its length."""
        return math.prod(self.shape) * {"BF16": 2, "F32": 4, "F8_E4M3": 1, "I32": 4}[self.dtype]


def write_checkpoint(folder: Path, sizes: dict[str, Any], format_name: str) -> Path:
    """Write a checkpoint with a shard per layer; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = AfmoeConfig(**sizes)
    with torch.device("meta"):
        model = AfmoeForCausalLM._from_config(config, dtype=torch.bfloat16)
    pools, shards = _pools(), _shards(model, sizes, format_name)
    index, total = {}, 0
    for number, (_, pieces) in enumerate(sorted(shards.items())):
        file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        _write_shard(folder / file, pieces, pools)
        index |= {piece.name: file for piece in pieces}
        total += sum(piece.nbytes for piece in pieces)
    said = {**config.to_dict(), "architectures": ["AfmoeForCausalLM"], "dtype": "bfloat16"}
    if quantization := _quantization(format_name):
        said["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(said))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    )
    write_byte_tokenizer(folder)
    return folder


def _shards(model: Any, sizes: dict[str, Any], format_name: str) -> dict[str, list[Piece]]:
    """Return the tensors of each shard."""
    found: dict[str, list[Piece]] = {}
    for name, tensor in model.state_dict().items():
        words = name.split(".")
        shard = words[2].zfill(4) if words[1] == "layers" else "rest"
        if ".experts." not in name:
            dtype = "F32" if tensor.dtype == torch.float32 else "BF16"
            kind = "ones" if "norm" in name else "numbers"
            kind = "zeros" if "bias" in name else kind
            pool = f"{kind} {dtype}"
            found.setdefault(shard, []).append(Piece(name, dtype, tuple(tensor.shape), pool))
        elif name.endswith("gate_up_proj"):
            stem = name.removesuffix("gate_up_proj")
            found.setdefault(shard, []).extend(_experts(stem, sizes, format_name))
    return found


def _experts(stem: str, sizes: dict[str, Any], format_name: str) -> Iterator[Piece]:
    width, inner = sizes["hidden_size"], sizes["moe_intermediate_size"]
    for expert in range(sizes["num_experts"]):
        for which, rows, columns in (
            ("gate_proj", inner, width),
            ("up_proj", inner, width),
            ("down_proj", width, inner),
        ):
            name = f"{stem}{expert}.{which}.weight"
            if format_name == "bf16":
                yield Piece(name, "BF16", (rows, columns), "numbers BF16")
            elif format_name == "fp8":
                blocks = (-(-rows // _BLOCK), -(-columns // _BLOCK))
                yield Piece(name, "F8_E4M3", (rows, columns), "codes")
                yield Piece(f"{name}_scale_inv", "F32", blocks, "scales F32")
            else:
                groups = (rows, columns // _GROUP)
                yield Piece(f"{name}_packed", "I32", (rows, columns // 8), "bits")
                yield Piece(f"{name}_scale", "BF16", groups, "scales BF16")
                yield Piece(f"{name}_shape", "I32", (2,), f"shape {rows} {columns}")


def _quantization(format_name: str) -> dict[str, Any] | None:
    others = ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*router.*"]
    if format_name == "fp8":
        size = [_BLOCK, _BLOCK]
        return {"quant_method": "fp8", "weight_block_size": size, "modules_to_not_convert": others}
    if format_name == "int4":
        weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"}
        group = {"targets": ["Linear"], "weights": {**weights, "group_size": _GROUP}}
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": group},
            "ignore": others,
        }
    return None


def _pools() -> dict[str, bytes]:
    """Return bytes for each kind of number."""
    source = np.random.default_rng(0)
    normal = torch.from_numpy(source.standard_normal(_POOL_NBYTES // 4, np.float32)) * _WIDTH
    codes = source.integers(0, 256, _POOL_NBYTES, np.uint8)
    codes[(codes & 0x7F) >= 0x78] = 0x30  # neither NaN nor so large that the rest is nothing
    ones = torch.ones(1 << 16)
    return {
        "numbers BF16": _bytes(normal.bfloat16()),
        "numbers F32": _bytes(normal),
        "ones BF16": _bytes(ones.bfloat16()),
        "ones F32": _bytes(ones),
        "zeros BF16": bytes(1 << 16),
        "zeros F32": bytes(1 << 16),
        "codes": codes.tobytes(),
        "bits": source.bytes(_POOL_NBYTES),
        "scales F32": _bytes(ones * (_WIDTH / 8)),
        "scales BF16": _bytes((ones * (_WIDTH / 4)).bfloat16()),
    }


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _write_shard(path: Path, pieces: list[Piece], pools: dict[str, bytes]) -> None:
    header, offset = {}, 0
    for piece in pieces:
        place = [offset, offset + piece.nbytes]
        header[piece.name] = {"dtype": piece.dtype, "shape": piece.shape, "data_offsets": place}
        offset += piece.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for piece in pieces:
            if piece.pool.startswith("shape"):
                file.write(struct.pack("<ii", *map(int, piece.pool.split()[1:])))
                continue
            left, pool = piece.nbytes, memoryview(pools[piece.pool])
            while left:
                left -= file.write(pool[: min(left, len(pool))])
