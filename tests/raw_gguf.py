"""Writes GGUF files byte by byte, so that tests can make each byte wrong."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

KINDS = {
    "u8": (0, "B"),
    "i8": (1, "b"),
    "u16": (2, "H"),
    "i16": (3, "h"),
    "u32": (4, "I"),
    "i32": (5, "i"),
    "f32": (6, "f"),
    "bool": (7, "?"),
    "str": (8, ""),
    "u64": (10, "Q"),
    "i64": (11, "q"),
    "f64": (12, "d"),
}
F32, F16, Q8_0, Q4_K = 0, 1, 8, 12


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


@dataclass
class Tensor:
    """`offset` counts from the start of the data; None: right behind the one before."""

    name: str | bytes
    dims: tuple[int, ...]
    nbytes: int
    type_id: int = F32
    offset: int | None = None


@dataclass
class RawGguf:
    """A file in the making. `keys` are (name, kind, value); a kind in brackets is an array."""

    keys: list[tuple[str | bytes, str, Any]] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: int = 3
    alignment: int = 32
    n_keys: int | None = None
    n_tensors: int | None = None
    missing_nbytes: int = 0
    """Bytes of data left out at the end."""

    def with_key(self, name: str, kind: str, value: Any) -> RawGguf:
        """Return a copy with a key replaced or added."""
        keys = [key for key in self.keys if key[0] != name]
        return replace(self, keys=[*keys, (name, kind, value)])

    def without_key(self, name: str) -> RawGguf:
        return replace(self, keys=[key for key in self.keys if key[0] != name])

    def with_tensor(self, tensor: str, **changes: Any) -> RawGguf:
        """Return a copy with one tensor changed."""
        tensors = [replace(t, **changes) if t.name == tensor else t for t in self.tensors]
        return replace(self, tensors=tensors)

    def without_tensor(self, name: str) -> RawGguf:
        return replace(self, tensors=[t for t in self.tensors if t.name != name])

    def header(self) -> bytes:
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.keys) if self.n_keys is None else self.n_keys
        parts = [self.magic, struct.pack("<IQQ", self.version, n_tensors, n_keys)]
        parts += [text(name) + packed(kind, value) for name, kind, value in self.keys]
        end = 0
        for tensor in self.tensors:
            offset = end if tensor.offset is None else tensor.offset
            end = -(-(offset + tensor.nbytes) // self.alignment) * self.alignment
            parts.append(text(tensor.name) + struct.pack("<I", len(tensor.dims)))
            parts.append(struct.pack(f"<{len(tensor.dims)}Q", *tensor.dims))
            parts.append(struct.pack("<IQ", tensor.type_id, offset))
        return b"".join(parts)

    def data_nbytes(self) -> int:
        end, most = 0, 0
        for tensor in self.tensors:
            offset = end if tensor.offset is None else tensor.offset
            end = -(-(offset + tensor.nbytes) // self.alignment) * self.alignment
            most = max(most, offset + tensor.nbytes)
        return most

    def encode(self) -> bytes:
        header = self.header()
        if self.tensors:
            header += bytes(-len(header) % self.alignment)
        return header + bytes(self.data_nbytes() - self.missing_nbytes)

    def write(self, path: Path) -> Path:
        path.write_bytes(self.encode())
        return path


def packed(kind: str, value: Any) -> bytes:
    """Return a value with its type in front; `raw` is taken as it is."""
    if kind == "raw":
        return bytes(value)
    if kind.startswith("["):
        return array(kind[1:-1], value)
    return struct.pack("<I", KINDS[kind][0]) + element(kind, value)


def array(kind: str, values: Any) -> bytes:
    number, letter = KINDS[kind]
    start = struct.pack("<IIQ", 9, number, len(values))
    if kind == "str":
        return start + b"".join(text(value) for value in values)
    return start + struct.pack(f"<{len(values)}{letter}", *values)


def element(kind: str, value: Any) -> bytes:
    return text(value) if kind == "str" else struct.pack("<" + KINDS[kind][1], value)


WIDTH, INNER, EXPERTS, USED, TOKENS, LAYERS = 32, 8, 4, 2, 40, 3


def experts(layer: int, matrix: str, width: int = WIDTH, inner: int = INNER) -> Tensor:
    dims = (inner, width, EXPERTS) if matrix == "down" else (width, inner, EXPERTS)
    return Tensor(f"blk.{layer}.ffn_{matrix}_exps.weight", dims, 4 * width * inner * EXPERTS)


def tiny(architecture: str = "qwen3moe") -> RawGguf:
    """Return a valid model: layer 0 dense, layers 1 and 2 routed; sound, but not runnable."""
    a = architecture
    raw = RawGguf(
        keys=[
            ("general.architecture", "str", a),
            ("general.name", "str", "tiny"),
            ("general.tags", "[str]", ["a", "b"]),
            (f"{a}.block_count", "u32", LAYERS),
            (f"{a}.context_length", "u32", 128),
            (f"{a}.embedding_length", "u32", WIDTH),
            (f"{a}.attention.head_count", "u32", 4),
            (f"{a}.attention.head_count_kv", "u32", 2),
            (f"{a}.attention.layer_norm_rms_epsilon", "f32", 1e-6),
            (f"{a}.rope.freq_base", "f32", 10000.0),
            (f"{a}.expert_count", "u32", EXPERTS),
            (f"{a}.expert_used_count", "u32", USED),
            ("tokenizer.ggml.model", "str", "gpt2"),
            ("tokenizer.ggml.tokens", "[str]", [f"token{i}" for i in range(TOKENS)]),
            ("tokenizer.ggml.token_type", "[i32]", [1] * TOKENS),
            ("tokenizer.ggml.merges", "[str]", ["a b"]),
            ("tokenizer.ggml.eos_token_id", "u32", 1),
        ],
        tensors=[
            Tensor("token_embd.weight", (WIDTH, TOKENS), 4 * WIDTH * TOKENS),
            Tensor("blk.0.attn_norm.weight", (WIDTH,), 4 * WIDTH),
            Tensor("blk.0.ffn_up.weight", (WIDTH, INNER), 4 * WIDTH * INNER),
        ],
    )
    for layer in range(1, LAYERS):
        for matrix in ("down", "gate", "up"):
            raw.tensors.append(experts(layer, matrix))
        raw.tensors.append(
            Tensor(f"blk.{layer}.ffn_gate_inp.weight", (WIDTH, EXPERTS), 4 * WIDTH * EXPERTS)
        )
        raw.tensors.append(Tensor(f"blk.{layer}.ffn_up_exps.scale", (EXPERTS,), 4 * EXPERTS))
    return raw
