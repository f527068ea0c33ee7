"""Models of mostly Mamba layers, with attention in a few."""

from __future__ import annotations

from zoo import layers
from zoo.draft import Draft
from zoo.families.granite import scales
from zoo.model import ZooModel
from zoo.shape import Shape

_KERNEL = 4
"""Tokens under a convolution, the present one included."""
_STATE, GROUPS, _STEPS = 16, 2, 8
"""Numbers kept per channel; groups that share what they read and write; heads of Mamba 2, or rank
of the step size of Mamba 1."""


def keys(model: Draft, has_attention: list[bool]) -> None:
    """Add the keys of attention and of Mamba; layers without heads for keys are recurrent."""
    shape = model.shape
    layers.grouped_query_keys(model)
    model.key(
        attention__head_count_kv=[shape.kv_heads * here for here in has_attention],
        ssm__conv_kernel=_KERNEL,
        ssm__inner_size=2 * shape.embedding,
        ssm__state_size=_STATE,
        ssm__time_step_rank=_STEPS,
    )


def mamba2(model: Draft, prefix: str) -> None:
    """Add a Mamba 2 layer: one step size and one decay per head."""
    embedding, inner = model.shape.embedding, 2 * model.shape.embedding
    mixed = inner + 2 * GROUPS * _STATE
    model.matrix(prefix + "ssm_in", inner + mixed + _STEPS, embedding)
    model.noise(prefix + "ssm_conv1d.weight", mixed, _KERNEL, std=0.5)
    model.noise(prefix + "ssm_conv1d.bias", mixed, std=0.1)
    model.noise(prefix + "ssm_dt.bias", _STEPS, std=0.5)
    # Minus one, roughly: half of the state is gone after one token.
    model.noise(prefix + "ssm_a", _STEPS, 1, std=0.1, mean=-1.0)
    model.noise(prefix + "ssm_d", _STEPS, 1, std=0.3, mean=1.0)
    model.noise(prefix + "ssm_norm.weight", GROUPS, inner // GROUPS, std=0.1, mean=1.0)
    model.matrix(prefix + "ssm_out", embedding, inner, gain=0.7)


def _mamba1(model: Draft, prefix: str) -> None:
    """Add a Mamba 1 layer: step size and decay per channel, norms for all that is projected."""
    embedding, inner = model.shape.embedding, 2 * model.shape.embedding
    model.matrix(prefix + "ssm_in", 2 * inner, embedding)
    model.noise(prefix + "ssm_conv1d.weight", inner, _KERNEL, std=0.5)
    model.noise(prefix + "ssm_conv1d.bias", inner, std=0.1)
    model.matrix(prefix + "ssm_x", _STEPS + 2 * _STATE, inner)
    for name, size in (("ssm_dt_norm", _STEPS), ("ssm_b_norm", _STATE), ("ssm_c_norm", _STATE)):
        model.norm(prefix + name, size)
    model.matrix(prefix + "ssm_dt", inner, _STEPS)
    model.noise(prefix + "ssm_dt.bias", inner, std=0.5)
    model.noise(prefix + "ssm_a", inner, _STATE, std=0.1, mean=-1.0)
    model.noise(prefix + "ssm_d", inner, std=0.3, mean=1.0)
    model.matrix(prefix + "ssm_out", embedding, inner, gain=0.7)


def granitehybrid(model: Draft) -> None:
    """Mamba 2 and attention without positions; Granite's scales; a shared expert."""
    shape = model.shape
    has_attention = [i % 2 == 1 for i in range(shape.layers)]
    layers.common(model, embedding_std=1 / 12)
    keys(model, has_attention)
    scales(model)
    width = shape.shared_feed_forward
    layers.expert_keys(model, expert_shared_feed_forward_length=width)
    model.key(ssm__group_count=GROUPS, rope__scaling__finetuned=False)
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        model.norm(prefix + "attn_norm", shape.embedding)
        if has_attention[i]:
            layers.grouped_query(model, prefix)
        else:
            mamba2(model, prefix)
        model.norm(prefix + "ffn_norm", shape.embedding)
        layers.router(model, prefix)
        layers.shared_expert(model, prefix)
        layers.experts(model, i)


def jamba(model: Draft) -> None:
    """Mamba 1 and attention without positions; experts in every second layer only."""
    shape = model.shape
    has_attention = [i % 3 == 1 for i in range(shape.layers)]
    layers.common(model)
    keys(model, has_attention)
    layers.expert_keys(model)
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        model.norm(prefix + "attn_norm", shape.embedding)
        if has_attention[i]:
            layers.grouped_query(model, prefix)
        else:
            _mamba1(model, prefix)
        model.norm(prefix + "ffn_norm", shape.embedding)
        if i % 2 == 0:
            layers.gated(model, prefix, "", shape.feed_forward)
        else:
            layers.router(model, prefix)
            layers.experts(model, i)


MODELS = {
    # Granite and Jamba have one key for the width of dense layers and of experts.
    "granitehybrid": ZooModel(
        "granitehybrid",
        granitehybrid,
        Shape(layers=4, feed_forward=32, shared_experts=2),
        stands_for="Granite 4.0 H Tiny, H Small",
        covers="Mamba 2, attention without positions, scales, shared expert",
    ),
    "jamba": ZooModel(
        "jamba",
        jamba,
        Shape(layers=6, head_size=16, feed_forward=32),
        stands_for="Jamba 1.5 Mini, 1.6 Large",
        covers="Mamba 1, attention without positions, experts in every second layer",
    ),
}
