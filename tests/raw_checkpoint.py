"""Writes safetensors checkpoints of which headers and configuration matter: without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from localmoe.weights.safetensors_header import DTYPE_BITS
from raw_safetensors import raw

Tensors = dict[str, tuple[str, tuple[int, ...]]]
"""Type and shape by name."""
HIDDEN, WIDTH, HEADS, KEPT_HEADS, HEAD = 64, 32, 4, 2, 16
LAYERS, EXPERTS, USED, VOCABULARY = 3, 4, 2, 128
CONFIG: Mapping[str, Any] = {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "dtype": "bfloat16",
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEPT_HEADS,
    "head_dim": HEAD,
    "moe_intermediate_size": WIDTH,
    "num_experts": EXPERTS,
    "num_experts_per_tok": USED,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 4096,
}
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def plain(name: str, rows: int, columns: int, dtype: str = "BF16") -> Tensors:
    """Return a matrix as it is."""
    return {f"{name}.weight": (dtype, (rows, columns))}


def resident() -> Tensors:
    """Return what every token uses, in BF16."""
    tensors = plain("model.embed_tokens", VOCABULARY, HIDDEN)
    for layer in range(LAYERS):
        stem = f"model.layers.{layer}"
        tensors |= plain(f"{stem}.self_attn.q_proj", HEADS * HEAD, HIDDEN)
        tensors |= plain(f"{stem}.self_attn.k_proj", KEPT_HEADS * HEAD, HIDDEN)
        tensors |= plain(f"{stem}.self_attn.v_proj", KEPT_HEADS * HEAD, HIDDEN)
        tensors |= plain(f"{stem}.self_attn.o_proj", HIDDEN, HEADS * HEAD)
        tensors |= plain(f"{stem}.mlp.gate", EXPERTS, HIDDEN)
        tensors[f"{stem}.input_layernorm.weight"] = ("BF16", (HIDDEN,))
    return tensors | plain("lm_head", VOCABULARY, HIDDEN)


def experts(encoded: Any = plain, layers: int = LAYERS) -> Tensors:
    """Return a tensor for each matrix of each expert; `encoded` stores a matrix."""
    tensors: Tensors = {}
    for layer in range(layers):
        for expert in range(EXPERTS):
            stem = f"model.layers.{layer}.mlp.experts.{expert}"
            tensors |= encoded(f"{stem}.gate_proj", WIDTH, HIDDEN)
            tensors |= encoded(f"{stem}.up_proj", WIDTH, HIDDEN)
            tensors |= encoded(f"{stem}.down_proj", HIDDEN, WIDTH)
    return tensors


def write(
    folder: Path,
    tensors: Tensors | None = None,
    config: Mapping[str, Any] | None = None,
    shards: int = 1,
) -> Path:
    """Write a checkpoint into a folder and return it; all data are zeros."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files(tensors, config, shards).items():
        (folder / name).write_bytes(content)
    return folder


def files(
    tensors: Tensors | None = None, config: Mapping[str, Any] | None = None, shards: int = 1
) -> dict[str, bytes]:
    """Return the files of a checkpoint by name."""
    tensors = {**resident(), **experts()} if tensors is None else tensors
    names = list(tensors)
    found = {
        "config.json": json.dumps({**CONFIG, **(config or {})}).encode(),
        "generation_config.json": json.dumps({"temperature": 0.6, "top_k": 20}).encode(),
        "tokenizer_config.json": json.dumps({"tokenizer_class": "Made"}).encode(),
        "tokenizer.json": b"{}",
        "chat_template.jinja": TEMPLATE.encode(),
    }
    if shards == 1:
        return {**found, "model.safetensors": _file(tensors)}
    places = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in
              enumerate(names)}  # fmt: skip
    for file in sorted(set(places.values())):
        found[file] = _file({n: tensors[n] for n in names if places[n] == file})
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    return {**found, "model.safetensors.index.json": json.dumps(index).encode()}


def _file(tensors: Tensors) -> bytes:
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + math.prod(shape) * DTYPE_BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    return raw(header, bytes(end))
