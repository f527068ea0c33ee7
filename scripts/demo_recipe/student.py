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
    dense_ffn,
    linear,
    neurons,
)
from demo_recipe.split import Shape, Split

# Spread of the router's logits at the start: nearly equal weights, so that all experts together
# still give the dense layer. The trained `router` is kept at unit spread and multiplied by this.
GAIN = 0.02
COMPONENT_TOKENS = 4096  # from which principal components are taken
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


def add_corrections(
    w: Weights, inputs: list[torch.Tensor], shape: Shape, ranks: tuple[int, int]
) -> Weights:
    """Return w with low-rank corrections that change nothing yet (b is 0).

    `ranks`: of feed-forward and of attention weights. Feed-forward corrections look at the largest
    principal components of what their matrix sees, so that every one of them matters.
    """
    random = torch.Generator().manual_seed(1)
    out = dict(w)
    for layer in range(LAYERS):
        for name in ATTENTION:
            weight = w[f"blk.{layer}.{name}.weight"]
            a = torch.randn(ranks[1], weight.shape[1], generator=random) / weight.shape[1] ** 0.5
            _add(out, f"blk.{layer}.{name}.weight", a.to(weight.device))
        if layer > 0:
            x = inputs[layer][:COMPONENT_TOKENS]
            seen = _components(x, ranks[0])
            _add(out, f"blk.{layer}.ffn_gate.weight", seen)
            _add(out, f"blk.{layer}.ffn_up.weight", seen.clone())
            active = masked_neurons(w, layer, x, shape)
            _add(out, f"blk.{layer}.ffn_down.weight", _components(active, ranks[0]))
    return out


def _add(w: Weights, name: str, a: torch.Tensor) -> None:
    w[f"{name}.a"], w[f"{name}.b"] = a, a.new_zeros(w[name].shape[0], len(a))


def _components(x: torch.Tensor, rank: int) -> torch.Tensor:
    """Return the largest principal components of x [N, W], each of unit power on x. [rank, W]."""
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    return (vectors[:, -rank:] / values[-rank:].sqrt()).T.contiguous()
