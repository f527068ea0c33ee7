"""Writes MLX checkpoints of Qwen3 MoE's kind in 4 bits, of any size, as mlx_lm.convert names them.

mlx-lm builds the model and says names and shapes; nothing of it is evaluated, and the files are
written as fast as the drive takes them. Weights are random, and the same bytes come again: what
they are does not change how fast they are read and multiplied. Routing is even, which no trained
model's is.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from byte_tokenizer import write_byte_tokenizer
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes

GROUP, BITS = 64, 4
TRUE: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
"""The shape of Qwen3-30B-A3B."""
TINY: dict[str, Any] = {
    **TRUE,
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 128,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
SMALL = {**TINY, "hidden_size": 512, "moe_intermediate_size": 256, "num_experts": 64}
"""Layers of 14 MB: enough of them for budgets to matter."""
_POOL_NBYTES = 32 << 20
_WIDTH = 0.02
"""Of the numbers that the weights stand for: what models begin their training with."""
_STEP = _WIDTH / 4
"""Between neighbouring values of four bits."""
_ITEM_NBYTES = {"BF16": 2, "F32": 4, "U32": 4}
_NAMES = {mx.bfloat16: "BF16", mx.float32: "F32", mx.uint32: "U32"}
Heard = Callable[[int, int], None]


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
        return math.prod(self.shape) * _ITEM_NBYTES[self.dtype]


def expert_nbytes(sizes: dict[str, Any]) -> int:
    """Return the bytes of one expert: three matrices, with a scale and a bias for each group."""
    numbers = 3 * sizes["hidden_size"] * sizes["moe_intermediate_size"]
    return numbers * BITS // 8 + numbers // GROUP * 2 * _ITEM_NBYTES["BF16"]


def sized(sizes: dict[str, Any], nbytes: int) -> dict[str, Any]:
    """Return the same shape with as many layers as come closest to so many bytes of experts."""
    layer = sizes["num_experts"] * expert_nbytes(sizes)
    return {**sizes, "num_hidden_layers": max(2, round(nbytes / layer))}


def write_checkpoint(folder: Path, sizes: dict[str, Any], heard: Heard | None = None) -> int:
    """Write a checkpoint with a file per layer into `folder`; return its bytes.

    `heard` is told of each file: how many bytes are written, of how many. It may raise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: dict[str, list[Piece]] = {}
    for piece in pieces(sizes):
        words = piece.name.split(".")
        shard = words[2].zfill(4) if words[1] == "layers" else "rest"
        shards.setdefault(shard, []).append(piece)
    total = sum(piece.nbytes for each in shards.values() for piece in each)
    pools, index, done = _pools(), {}, 0
    for number, (_, each) in enumerate(sorted(shards.items())):
        file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        _write_shard(folder / file, each, pools)
        index |= {piece.name: file for piece in each}
        done += sum(piece.nbytes for piece in each)
        if heard:
            heard(done, total)
    quantization = {"group_size": GROUP, "bits": BITS, "mode": "affine"}
    said = {**sizes, "architectures": ["Qwen3MoeForCausalLM"], "quantization": quantization}
    (folder / "config.json").write_text(json.dumps(said))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    )
    write_byte_tokenizer(folder)
    return total


def pieces(sizes: dict[str, Any]) -> Iterator[Piece]:
    """Yield the tensors that mlx-lm's model has, quantized as mlx_lm.convert would."""
    model_class, arguments = _get_classes(sizes)
    model = model_class(arguments.from_dict(sizes))
    model.set_dtype(mx.bfloat16)
    nn.quantize(model, GROUP, BITS, class_predicate=lambda _, m: hasattr(m, "to_quantized"))
    for name, array in tree_flatten(model.parameters()):
        dtype = _NAMES[array.dtype]
        kind = name.rpartition(".")[2]
        is_norm = "norm" in name
        pool = "bits" if dtype == "U32" else "ones" if is_norm else kind
        yield Piece(name, dtype, tuple(array.shape), pool)


def _pools() -> dict[str, bytes]:
    """Return bytes for each kind of tensor."""
    source = np.random.default_rng(0)
    return {
        "bits": source.bytes(_POOL_NBYTES),
        "ones": _bfloat16(1.0),
        "scales": _bfloat16(_STEP),
        "biases": _bfloat16(-7.5 * _STEP),
    }


def _bfloat16(value: float) -> bytes:
    upper: np.ndarray[Any, Any] = np.full(1 << 16, value, "<f4").view("<u4") >> 16
    return upper.astype("<u2").tobytes()


def _write_shard(path: Path, shard: list[Piece], pools: dict[str, bytes]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    offset = 0
    for piece in shard:
        place = [offset, offset + piece.nbytes]
        header[piece.name] = {"dtype": piece.dtype, "shape": piece.shape, "data_offsets": place}
        offset += piece.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for piece in shard:
            left, pool = piece.nbytes, memoryview(pools[piece.pool])
            while left:
                left -= file.write(pool[: min(left, len(pool))])
