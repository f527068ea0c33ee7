"""Delta nets as Kimi has them: recurrent layers that forget channel by channel."""

from __future__ import annotations

from zoo.draft import Draft

KERNEL = 4
"""Tokens under a convolution, the present one included."""
HEAD = 16
"""Width of a head of the delta net."""


def delta_net(model: Draft, prefix: str, decay_shape: tuple[int, ...], *, forget: float) -> None:
    """Add a delta net, but for its gates. `forget` moves the rate at which it forgets."""
    heads, embedding = model.shape.heads, model.shape.embedding
    width = heads * HEAD
    for name in ("q", "k", "v"):
        model.matrix(f"{prefix}attn_{name}", width, embedding)
        model.noise(f"{prefix}ssm_conv1d_{name}.weight", 1, width, 1, KERNEL, std=0.5)
    model.matrix(prefix + "ssm_beta", heads, embedding)
    model.noise(prefix + "ssm_a", *decay_shape, std=0.1, mean=-1.0)
    model.noise(prefix + "ssm_dt.bias", width, std=0.5, mean=forget)
    model.norm(prefix + "ssm_norm", HEAD)
    model.matrix(prefix + "attn_output", embedding, width)


def low_rank(model: Draft, name: str) -> None:
    """Add a gate of a delta net as the product of two matrices."""
    model.matrix(f"{name}_a", HEAD, model.shape.embedding)
    model.matrix(f"{name}_b", model.shape.heads * HEAD, HEAD)
