"""GLM-5.3: delta nets, and attention to pools of positions, with four streams between layers."""

from __future__ import annotations

from zoo import layers
from zoo.delta_net import HEAD, KERNEL, delta_net, low_rank
from zoo.draft import Draft
from zoo.model import ZooModel
from zoo.shape import Shape
from zoo.streams import mix_streams, stream_keys

_Q_RANK, _KV_RANK = 48, 32
_INDEX_HEADS, _INDEX_SIZE = 4, 32
_POOL, _CHOSEN = 4, 8
"""Positions of one pool, and positions that attention sees besides the last pool."""


def glm5_next(model: Draft) -> None:
    """Every second layer attends, without positions; the second of them shares a choice."""
    shape = model.shape
    attends = [i % 2 == 1 for i in range(shape.layers)]
    chooses = [i % 4 != 3 for i in range(shape.layers)]
    layers.common(model)
    layers.shared_expert_keys(model, gating=layers.SIGMOID, scale=2.5)
    _attention_keys(model, attends, chooses)
    stream_keys(model)
    limits = [1.0] * (shape.layers + 1)
    model.key(swiglu_clamp_exp=limits, swiglu_clamp_shexp=limits)
    model.key(block_count=shape.layers + 1, nextn_predict_layers=1)
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        mix_streams(model, prefix + "hc_attn")
        model.norm(prefix + "attn_norm", shape.embedding)
        if attends[i]:
            _attention(model, prefix, chooses=chooses[i])
        else:
            delta_net(model, prefix, (shape.heads,), forget=-2.0)
            low_rank(model, prefix + "ssm_f")
            low_rank(model, prefix + "ssm_g")
        mix_streams(model, prefix + "hc_ffn")
        model.norm(prefix + "ffn_norm", shape.embedding)
        layers.dense_or_routed(model, i)
    _drafting_layer(model)


def _attention_keys(model: Draft, attends: list[bool], chooses: list[bool]) -> None:
    layers.latent_keys(model, q_rank=_Q_RANK, kv_rank=_KV_RANK, rope=0)
    model.key(
        # Layers without heads for keys are recurrent; the last one drafts.
        attention__head_count_kv=[*(int(here) for here in attends), 1],
        attention__layer_norm_epsilon=1e-6,
        attention__indexer__head_count=_INDEX_HEADS,
        attention__indexer__key_length=_INDEX_SIZE,
        attention__indexer__top_k=_CHOSEN,
        attention__indexer__kpool=_POOL,
        attention__indexer__kpool_select_tail=True,
        attention__indexer__types=chooses,
        ssm__conv_kernel=KERNEL,
        kda__head_dim=HEAD,
        kda__gate_lower_bound=-5.0,
    )


def _attention(model: Draft, prefix: str, *, chooses: bool) -> None:
    layers.latent_attention(model, prefix, q_rank=_Q_RANK, kv_rank=_KV_RANK, rope=0)
    if not chooses:
        return
    embedding = model.shape.embedding
    model.norm(prefix + "indexer.k_norm", _INDEX_SIZE)
    model.noise(prefix + "indexer.k_norm.bias", _INDEX_SIZE, std=0.1)
    model.matrix(prefix + "indexer.proj", _INDEX_HEADS, embedding)
    model.matrix(prefix + "indexer.attn_k", _INDEX_SIZE, embedding)
    model.matrix(prefix + "indexer.attn_q_b", _INDEX_HEADS * _INDEX_SIZE, _Q_RANK)
    model.matrix(prefix + "indexer_compressor_gate", _INDEX_SIZE, embedding)
    model.noise(prefix + "indexer_compressor_ape.weight", _POOL, _INDEX_SIZE, std=0.5)


def _drafting_layer(model: Draft) -> None:
    """Add the layer behind the last one: it has one stream."""
    shape = model.shape
    prefix = f"blk.{shape.layers}."
    model.norm(prefix + "attn_norm", shape.embedding)
    _attention(model, prefix, chooses=True)
    model.norm(prefix + "ffn_norm", shape.embedding)
    layers.dense_or_routed(model, shape.layers)
    layers.next_token_head(model, prefix)


MODELS: dict[str, ZooModel] = {
    "glm5-next": ZooModel(
        "glm5-next",
        glm5_next,
        Shape(layers=6, dense_layers=1, shared_experts=1, expert_types=(("Q8_0",) * 3,)),
        stands_for="GLM-5.3-Flash",
        covers="delta nets, attention to pools of positions that an indexer chooses, layers that "
        "share the choice, four streams, clamped experts, an unused layer that predicts further "
        "tokens",
    ),
}
