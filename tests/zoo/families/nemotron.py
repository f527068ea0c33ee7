"""NVIDIA's Nemotron-H: each layer is one thing only, Mamba 2, attention or experts."""

from __future__ import annotations

from zoo import layers
from zoo.draft import Draft
from zoo.families import mamba
from zoo.model import ZooModel
from zoo.shape import Shape

_PATTERN = "ME*EME"
"""M: Mamba 2, E: experts, *: attention."""
_LATENT = 32
"""What the routed experts take and give; a matrix on either side fits it to the embedding."""


def nemotron_h(model: Draft) -> None:
    """Experts without gates, in a latent space; a layer behind the others that is never used."""
    shape = model.shape
    widths = [shape.expert_feed_forward * (kind == "E") for kind in _PATTERN]
    layers.expert_keys(model)
    _build(model, _PATTERN + "*", [*widths, shape.expert_feed_forward])
    # Attention and experts in one layer, unlike all before it.
    last = len(_PATTERN)
    model.key(block_count=last + 1, nextn_predict_layers=1)
    model.norm(f"blk.{last}.post_attention_norm", shape.embedding)
    layers.grouped_query(model, f"blk.{last}.")
    _layer(model, last, "E", shape.expert_feed_forward)
    layers.next_token_head(model, f"blk.{last}.")


def nemotron_puzzle(model: Draft) -> None:
    """Numbers and widths of experts that differ from layer to layer."""
    shape = model.shape
    moe_layers = [i for i, kind in enumerate(_PATTERN) if kind == "E"]
    widths, used = [0] * len(_PATTERN), [0] * len(_PATTERN)
    for n, layer in enumerate(moe_layers):
        widths[layer] = shape.expert_feed_forward * (n + 1)
        used[layer] = shape.experts_used + n
    layers.expert_keys(model)
    model.key(expert_feed_forward_length=widths, expert_used_count=used)
    _build(model, _PATTERN, widths)


def _build(model: Draft, kinds: str, widths: list[int]) -> None:
    """Add the keys of these kinds of layers, and all layers that are used.

    `widths` are those of the experts, 0 where there are none.
    """
    shape = model.shape
    layers.common(model)
    mamba.keys(model, [kind == "*" for kind in kinds])
    model.key(
        attention__layer_norm_epsilon=1e-6,
        ssm__group_count=mamba.GROUPS,
        feed_forward_length=widths,
        expert_shared_count=1,
        expert_shared_feed_forward_length=2 * shape.expert_feed_forward,
        expert_weights_norm=True,
        expert_weights_scale=2.5,
        expert_group_count=1,
        moe_latent_size=_LATENT,
    )
    for i, kind in enumerate(_PATTERN):
        _layer(model, i, kind, widths[i])


def _layer(model: Draft, layer: int, kind: str, width: int) -> None:
    prefix = f"blk.{layer}."
    model.norm(prefix + "attn_norm", model.shape.embedding)
    if kind == "M":
        mamba.mamba2(model, prefix)
    elif kind == "*":
        layers.grouped_query(model, prefix)
    else:
        _experts(model, prefix, width)


def _experts(model: Draft, prefix: str, width: int) -> None:
    shape, embedding = model.shape, model.shape.embedding
    _, up, down = shape.expert_types[0]
    shared = 2 * shape.expert_feed_forward
    layers.router(model, prefix)
    layers.selection_bias(model, prefix)
    model.matrix(prefix + "ffn_latent_down", _LATENT, embedding)
    model.matrix(prefix + "ffn_up_exps", shape.experts, width, _LATENT, type_name=up)
    model.matrix(prefix + "ffn_down_exps", shape.experts, _LATENT, width, type_name=down)
    model.matrix(prefix + "ffn_latent_up", embedding, _LATENT)
    model.matrix(prefix + "ffn_up_shexp", shared, embedding)
    model.matrix(prefix + "ffn_down_shexp", embedding, shared)


_SHAPE = Shape(layers=len(_PATTERN), experts_used=4)

MODELS = {
    "nemotron_h_moe": ZooModel(
        "nemotron_h_moe",
        nemotron_h,
        _SHAPE,
        stands_for="Nemotron 3 Nano 30B-A3B, Super 120B-A12B",
        covers="Mamba 2, attention without positions, experts without gates in a latent space, "
        "selection bias, shared expert, a layer for drafting that is left unread",
    ),
    "nemotron_h_moe-puzzle": ZooModel(
        "nemotron_h_moe",
        nemotron_puzzle,
        _SHAPE,
        stands_for="Nemotron 3 Puzzle 75B-A9B",
        covers="width and number of experts that differ from layer to layer: a size class for each",
    ),
    "nemotron_h": ZooModel(
        "nemotron_h",
        nemotron_h,
        _SHAPE,
        stands_for="nemotron_h_moe under the name of the dense ones",
        covers="the same; Nemotron-H checkpoints themselves have no experts",
    ),
}
