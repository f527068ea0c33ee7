"""The mixture of experts in torch: regrouped weights, gates, corrections.

What is trained, by name (`blk.N.` before most): `ffn_*.weight.a/.b` and `attn_*.weight.a/.b`
(low-rank corrections), `router` [E, D], `neuron_scale` [F], the norms.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from demo_recipe.dense import (
    FF,
    LAYERS,
    Ffn,
    Weights,
    attended,
    dense_ffn,
    linear,
    neurons,
    rope_table,
)
from demo_recipe.sample import Record
from demo_recipe.split import Shape, Split

# Spread of the router's logits at the start: nearly equal weights, so that all experts together
# still give the dense layer. The trained `router` is kept at unit spread and multiplied by this.
GAIN = 0.02
FIT_TOKENS = 16384  # that the down projections are fitted on
ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
FEED_FORWARD = ("ffn_gate", "ffn_up", "ffn_down")


def regroup(w: Weights, splits: dict[int, Split], inputs: list[torch.Tensor]) -> Weights:
    """Return the weights with neurons in split order and a `router` per split layer."""
    out = dict(w)
    for layer, split in splits.items():
        block, order = f"blk.{layer}.", split.order
        for name in ("ffn_gate.weight", "ffn_up.weight"):
            out[block + name] = w[block + name][order].contiguous()
        out[block + "ffn_down.weight"] = w[block + "ffn_down.weight"][:, order].contiguous()
        spread = (inputs[layer][:4096] @ split.router.T).std()
        out[block + "router"] = split.router / spread
        out[block + "neuron_scale"] = torch.ones(FF, device=spread.device)
    return out


def gates(w: Weights, layer: int, x: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Return each routed expert's weight, 0 where it is not among the best. [..., E]."""
    logits = F.linear(x, w[f"blk.{layer}.router"] * GAIN)
    weight = F.softmax(logits, -1) * shape.experts
    chosen = weight.topk(shape.used, -1).indices
    return torch.zeros_like(weight).scatter(-1, chosen, weight.gather(-1, chosen))


def masked_neurons(w: Weights, layer: int, x: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Return the neurons' activity times their expert's weight. [..., D] -> [..., F]."""
    gate = gates(w, layer, x, shape)
    one = gate.new_ones(*gate.shape[:-1], shape.shared)
    mask = torch.cat([one, gate.repeat_interleave(shape.width, -1)], -1)
    return neurons(w, layer, x) * (mask * w[f"blk.{layer}.neuron_scale"])


def expert_ffn(shape: Shape) -> Ffn:
    """Return the arithmetic of llama.cpp's `deepseek` graph, as a mask over grouped neurons."""

    def ffn(w: Weights, layer: int, x: torch.Tensor) -> torch.Tensor:
        if layer == 0:
            return dense_ffn(w, layer, x)
        return linear(w, f"blk.{layer}.ffn_down.weight", masked_neurons(w, layer, x, shape))

    return ffn


def add_corrections(w: Weights, ranks: tuple[int, int]) -> Weights:
    """Return w with low-rank corrections that change nothing yet.

    `ranks`: of feed-forward and of attention weights.
    """
    random = torch.Generator().manual_seed(1)
    out = dict(w)
    for layer in range(LAYERS):
        named = [(n, ranks[1]) for n in ATTENTION]
        named += [(n, ranks[0]) for n in FEED_FORWARD if layer > 0]
        for name, rank in named:
            weight = w[f"blk.{layer}.{name}.weight"]
            a = torch.randn(rank, weight.shape[1], generator=random) / weight.shape[1] ** 0.5
            out[f"blk.{layer}.{name}.weight.a"] = a.to(weight.device)
            out[f"blk.{layer}.{name}.weight.b"] = weight.new_zeros(weight.shape[0], rank)
    return out


def fit_down(w: Weights, chats: Record, shape: Shape) -> Weights:
    """Return w with every down projection's correction at its best, layer after layer.

    Each layer is fitted on what the corrected layers before it give, towards the residual that the
    dense model has after it: so it also undoes some of their error.
    """
    out, rank = dict(w), len(w["blk.1.ffn_down.weight.a"])
    device = w["output_norm.weight"].device
    rows = FIT_TOKENS // chats["ids"].shape[1]
    ids = chats["ids"][:rows].long().to(device)
    keep = torch.arange(ids.shape[1], device=device)[None] < chats["length"][:rows, None].to(device)
    table = rope_table(ids.shape[1], device)
    dense = student = F.embedding(ids, w["token_embd.weight"])
    for layer in range(LAYERS):
        dense, normed = attended(w, layer, dense, table)
        dense = dense + _whole_ffn(w, layer, normed)
        student, normed = attended(w, layer, student, table)
        if layer > 0:
            name = f"blk.{layer}.ffn_down.weight"
            kept = masked_neurons(w, layer, normed, shape)[keep]
            missing = (dense - student)[keep] - kept @ w[name].T
            out[f"{name}.a"], out[f"{name}.b"] = _reduced_rank(kept, missing, rank)
        student = student + expert_ffn(shape)(out, layer, normed)
    return out


def _whole_ffn(w: Weights, layer: int, x: torch.Tensor) -> torch.Tensor:
    """Return the dense layer: all neurons, no correction."""
    return F.linear(neurons(w, layer, x), w[f"blk.{layer}.ffn_down.weight"])


def _reduced_rank(x: torch.Tensor, y: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a [rank, F] and b [D, rank] such that x a' b' is close to y: ridge regression."""
    gram = x.T @ x
    ridge = 0.02 * gram.diagonal() + 1e-3 * gram.diagonal().mean()
    full = torch.linalg.solve(gram + torch.diag(ridge), x.T @ y)  # [F, D]
    directions = torch.linalg.eigh(full.T @ gram @ full).eigenvectors[:, -rank:]  # [D, rank]
    a = (full @ directions).T
    balance = (a.norm() / directions.norm()).sqrt()
    return (a / balance).contiguous(), (directions * balance).contiguous()
