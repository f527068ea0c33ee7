"""Write a Mixture-of-Experts GGUF of any size with random weights, to measure speed with.

    python benchmarks/synthetic.py OUT.gguf [--layers 24] [--experts 128] ...

The defaults have the shapes of half of Qwen3-30B-A3B: 8.45 GB, 3072 experts of 2.65 MB in three
matrices of Q4_K. All weights are seeded, so the same options give the same file. It says nothing
about answers, and its routing is that of random weights.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

HEADS, KV_HEADS, HEAD_WIDTH = 32, 4, 128
BLOCK_WEIGHTS, BLOCK_NBYTES = 256, 144  # Q4_K
HEADER_NBYTES, CODE_DEVIATION, SCALE = 16, 4.61, 32
CHUNK_BLOCKS = 1 << 19


@dataclass(frozen=True)
class Shape:
    """What can be chosen; the rest is Qwen3-30B-A3B's."""

    layers: int = 24
    embedding: int = 2048
    expert_width: int = 768
    experts: int = 128
    experts_used: int = 8
    vocabulary: int = 8192


def q4_k_header(deviation: float) -> Bytes:
    """Return the 16 bytes that begin each block: every sub-block has scale 32 and minimum 32.

    A weight is then 32 d (code - 7.5), with codes from 0 to 15.
    """
    scale = np.float16(deviation / (SCALE * CODE_DEVIATION))
    minimum = np.float16(7.5 * float(scale))
    six_bit = [0xA0] * 8 + [0x00] * 4  # 32 in each of eight scales and eight minima
    return np.concatenate(
        [np.array([scale, minimum]).view(np.uint8), np.array(six_bit, np.uint8)]
    )  # [16]


def q4_k_chunks(rng: np.random.Generator, weights: int, deviation: float) -> Iterator[Bytes]:
    """Yield random blocks, a part of the matrix at a time."""
    header = q4_k_header(deviation)
    left = weights // BLOCK_WEIGHTS
    while left:
        count = min(left, CHUNK_BLOCKS)
        blocks = np.empty((count, BLOCK_NBYTES), np.uint8)
        blocks[:, :HEADER_NBYTES] = header
        codes = rng.bytes(count * (BLOCK_NBYTES - HEADER_NBYTES))
        blocks[:, HEADER_NBYTES:] = np.frombuffer(codes, np.uint8).reshape(count, -1)
        yield blocks
        left -= count


class SyntheticModel:
    """Declares all tensors, then writes them one after the other: memory stays small."""

    def __init__(self, path: Path, shape: Shape) -> None:
        self.shape = shape
        self._writer = gguf.GGUFWriter(str(path), "qwen3moe")
        self._path = path
        self._rng = np.random.Generator(np.random.PCG64(0))
        self._data: list[npt.NDArray[np.float32] | tuple[int, float]] = []

    def write(self) -> None:
        """Write the whole file."""
        self._metadata()
        self._tensors()
        self._writer.write_header_to_file()
        self._writer.write_kv_data_to_file()
        self._writer.write_ti_data_to_file()
        self._writer.close()
        with self._path.open("ab") as file:
            for data in self._data:
                self._write_tensor(file, data)

    def _metadata(self) -> None:
        s, w = self.shape, self._writer
        w.add_name(f"synthetic qwen3moe, {s.layers} layers of {s.experts} experts")
        w.add_block_count(s.layers)
        w.add_context_length(32768)
        w.add_embedding_length(s.embedding)
        w.add_feed_forward_length(8 * s.expert_width)
        w.add_expert_feed_forward_length(s.expert_width)
        w.add_expert_count(s.experts)
        w.add_expert_used_count(s.experts_used)
        w.add_head_count(HEADS)
        w.add_head_count_kv(KV_HEADS)
        w.add_key_length(HEAD_WIDTH)
        w.add_value_length(HEAD_WIDTH)
        w.add_layer_norm_rms_eps(1e-6)
        w.add_rope_freq_base(1e6)
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre("gpt-2")
        w.add_token_list([f"<{i}>" for i in range(s.vocabulary)])
        w.add_token_types([int(gguf.TokenType.NORMAL)] * s.vocabulary)
        w.add_token_merges(["< 0"])
        w.add_bos_token_id(0)
        w.add_eos_token_id(1)

    def _tensors(self) -> None:
        s = self.shape
        # Spread 1 keeps a token's own direction through all layers: routing depends on the token.
        self._q4_k("token_embd.weight", (s.vocabulary, s.embedding), 1.0)
        self._ones("output_norm.weight", s.embedding)
        self._q4_k("output.weight", (s.vocabulary, s.embedding), 0.02)
        for layer in range(s.layers):
            self._layer(f"blk.{layer}.")

    def _layer(self, prefix: str) -> None:
        s, width = self.shape, HEADS * HEAD_WIDTH
        for name, size in (
            ("attn_norm", s.embedding),
            ("ffn_norm", s.embedding),
            ("attn_q_norm", HEAD_WIDTH),
            ("attn_k_norm", HEAD_WIDTH),
        ):
            self._ones(f"{prefix}{name}.weight", size)
        for name, rows in (("attn_q", width), ("attn_k", KV_HEADS * HEAD_WIDTH)):
            self._q4_k(f"{prefix}{name}.weight", (rows, s.embedding))
        self._q4_k(f"{prefix}attn_v.weight", (KV_HEADS * HEAD_WIDTH, s.embedding))
        self._q4_k(f"{prefix}attn_output.weight", (s.embedding, width))
        router = self._rng.standard_normal((s.experts, s.embedding), np.float32) * 0.05
        self._f32(f"{prefix}ffn_gate_inp.weight", router)
        for name in ("ffn_gate_exps", "ffn_up_exps"):
            self._q4_k(f"{prefix}{name}.weight", (s.experts, s.expert_width, s.embedding))
        self._q4_k(f"{prefix}ffn_down_exps.weight", (s.experts, s.embedding, s.expert_width))

    def _ones(self, name: str, size: int) -> None:
        self._f32(name, np.ones(size, np.float32))

    def _f32(self, name: str, values: npt.NDArray[np.float32]) -> None:
        self._writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
        self._data.append(values)

    def _q4_k(self, name: str, shape: tuple[int, ...], deviation: float | None = None) -> None:
        """Declare a matrix; its deviation keeps the size of what passes through, if not given."""
        if shape[-1] % BLOCK_WEIGHTS:
            raise SystemExit(f"{name}: rows of {shape[-1]} are no multiple of {BLOCK_WEIGHTS}")
        weights = int(np.prod(shape))
        rows = (*shape[:-1], shape[-1] // BLOCK_WEIGHTS * BLOCK_NBYTES)
        nbytes = weights // BLOCK_WEIGHTS * BLOCK_NBYTES
        kind = gguf.GGMLQuantizationType.Q4_K
        self._writer.add_tensor_info(name, rows, np.dtype(np.uint8), nbytes, raw_dtype=kind)
        self._data.append((weights, deviation or shape[-1] ** -0.5))

    def _write_tensor(self, file, data) -> None:  # type: ignore[no-untyped-def]
        """Append one tensor at the next aligned offset."""
        file.write(bytes(-file.tell() % self._writer.data_alignment))
        if isinstance(data, np.ndarray):
            file.write(data.tobytes())
            return
        for blocks in q4_k_chunks(self._rng, *data):
            file.write(blocks.data)


def synthetic_model(path: Path, shape: Shape) -> Path:
    """Write the model, unless it is there already; a broken-off write leaves nothing behind."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        SyntheticModel(part, shape).write()
        os.replace(part, path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("out", type=Path)
    for field in fields(Shape):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=field.default)
    options = vars(parser.parse_args())
    path = options.pop("out")
    synthetic_model(path, Shape(**options))
    print(f"{path}: {path.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
