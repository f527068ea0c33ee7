"""Write a tuned student as a recipe: see localmoe/demo/recipe.py for the arrays."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import torch

from demo_recipe.dense import LAYERS, Weights
from demo_recipe.split import Shape, Split
from demo_recipe.student import ATTENTION, FEED_FORWARD, GAIN
from localmoe.demo.recipe import FORMAT, Array


def base_arrays(w: Weights, splits: dict[int, Split]) -> dict[str, Array]:
    """Return the split: order and routers."""
    order = torch.stack([splits[layer].order for layer in sorted(splits)])
    router = torch.stack([w[f"blk.{layer}.router"] for layer in sorted(splits)])
    return {"order": order.cpu().numpy().astype(np.uint16), "router": _half(router)}


def tuned_arrays(w: Weights, splits: dict[int, Split]) -> dict[str, Array]:
    """Return scales, norms and corrections."""
    layers = sorted(splits)
    arrays: dict[str, Array] = {
        "neuron_scale": _half(torch.stack([w[f"blk.{i}.neuron_scale"] for i in layers])),
        "output_norm": w["output_norm.weight"][None].cpu().numpy(),
    }
    for name in ("attn_norm", "ffn_norm"):
        norms = [w[f"blk.{i}.{name}.weight"] for i in range(LAYERS)]
        arrays[name] = torch.stack(norms).cpu().numpy()
    for name in (*ATTENTION, *FEED_FORWARD):
        rows = layers if name in FEED_FORWARD else list(range(LAYERS))
        a = torch.stack([w[f"blk.{i}.{name}.weight.a"] for i in rows])  # [n, r, in]
        b = torch.stack([w[f"blk.{i}.{name}.weight.b"].T for i in rows])  # [n, r, out]
        arrays |= _eight_bits(f"{name}.a", a) | _eight_bits(f"{name}.b", b)
    return arrays


def _half(tensor: torch.Tensor) -> Array:
    return tensor.cpu().numpy().astype(np.float16)


def _eight_bits(name: str, factor: torch.Tensor) -> dict[str, Array]:
    """Return a factor [n, r, width] as int8 with one scale per row."""
    scale = (factor.abs().amax(-1, keepdim=True) / 127).clamp_min(1e-7).half().float()
    codes = (factor / scale).round().clamp(-127, 127).to(torch.int8)
    return {name: codes.cpu().numpy(), f"{name}_scale": _half(scale[..., 0])}


def write_recipe(path: Path, arrays: dict[str, Array], shape: Shape) -> None:
    """Write the recipe, whole or not at all."""
    header = {
        "format": FORMAT,
        "shared": shape.shared,
        "experts": shape.experts,
        "used": shape.used,
        "gain": GAIN,
    }
    part = path.with_suffix(".part.npz")
    np.savez_compressed(part, header=np.array(json.dumps(header)), **arrays)
    os.replace(part, path)
