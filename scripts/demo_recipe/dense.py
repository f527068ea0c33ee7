"""SmolLM2-135M-Instruct in torch, as plain functions over a dict of weights.

Shapes: B sequences, T tokens, D hidden 576, F neurons 1536. Everything is float32: on CPUs
without matrix units bfloat16 is slower. A weight `name` may carry a low-rank correction
`name.a` [r, in], `name.b` [out, r].
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import torch
import torch.nn.functional as F

D, FF, HEADS, KV_HEADS, HEAD, LAYERS, VOCAB = 576, 1536, 9, 3, 64, 30, 49152
EPS, THETA = 1e-5, 100000.0
END = 2  # <|im_end|>

Weights = dict[str, torch.Tensor]
Ffn = Callable[[Weights, int, torch.Tensor], torch.Tensor]
See = Callable[[int, torch.Tensor, torch.Tensor], None]


def load_dense(path: Path, device: torch.device) -> Weights:
    """Return the weights by GGUF name, each [out, in] or [D]."""
    weights = {}
    for t in gguf.GGUFReader(path).tensors:
        array = gguf.dequantize(t.data, t.tensor_type).astype(np.float32)
        weights[t.name] = torch.from_numpy(array).to(device)
    if weights["token_embd.weight"].shape != (VOCAB, D):
        raise SystemExit(f"{path} is not SmolLM2-135M")
    return weights


def rope_table(n: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines, each [n, HEAD / 2]."""
    rates = THETA ** (-torch.arange(0, HEAD, 2).float() / HEAD)
    angles = torch.outer(torch.arange(n).float(), rates).to(device)
    return angles.cos(), angles.sin()


def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate neighbouring pairs, the order in which GGUF stores this family."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Root-mean-square norm over the last axis."""
    return F.rms_norm(x, (D,), weight, EPS)


def linear(w: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    """Multiply by weight `name`, and by its low-rank correction where it has one."""
    y = F.linear(x, w[name])
    if f"{name}.a" in w:
        y = y + F.linear(F.linear(x, w[f"{name}.a"]), w[f"{name}.b"])
    return y


def attention(
    w: Weights, layer: int, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """Causal grouped-query attention. [B, T, D] -> [B, T, D]."""
    n_seq, n_tok, _ = x.shape
    q, k, v = (
        linear(w, f"blk.{layer}.attn_{n}.weight", x).view(n_seq, n_tok, -1, HEAD).transpose(1, 2)
        for n in "qkv"
    )
    q, k = rope(q, cos, sin), rope(k, cos, sin)
    k, v = (t.repeat_interleave(HEADS // KV_HEADS, 1) for t in (k, v))
    o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    o = o.transpose(1, 2).reshape(n_seq, n_tok, D)
    return linear(w, f"blk.{layer}.attn_output.weight", o)


def attended(
    w: Weights, layer: int, x: torch.Tensor, table: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the residual after attention and the normalised feed-forward input of it."""
    block = f"blk.{layer}."
    x = x + attention(w, layer, rms(x, w[f"{block}attn_norm.weight"]), *table)
    return x, rms(x, w[f"{block}ffn_norm.weight"])


def neurons(w: Weights, layer: int, x: torch.Tensor) -> torch.Tensor:
    """Activity of the gated feed-forward neurons. [..., D] -> [..., F]."""
    gate = linear(w, f"blk.{layer}.ffn_gate.weight", x)
    return F.silu(gate) * linear(w, f"blk.{layer}.ffn_up.weight", x)


def dense_ffn(w: Weights, layer: int, x: torch.Tensor) -> torch.Tensor:
    """Return the whole feed-forward layer."""
    return linear(w, f"blk.{layer}.ffn_down.weight", neurons(w, layer, x))


def forward(
    w: Weights, ids: torch.Tensor, ffn: Ffn = dense_ffn, see: See | None = None
) -> torch.Tensor:
    """Return final normalised states [B, T, D].

    `see(layer, residual, normed)` is shown the input of every feed-forward layer.
    """
    x = F.embedding(ids, w["token_embd.weight"])
    table = rope_table(ids.shape[1], ids.device)
    for layer in range(LAYERS):
        x, n = attended(w, layer, x, table)
        if see:
            see(layer, x, n)
        x = x + ffn(w, layer, n)
    return rms(x, w["output_norm.weight"])
