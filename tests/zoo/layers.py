"""The pieces that architectures share: one function per kind of sub-layer.

Gains are chosen so that a token keeps its own direction through all layers (routing depends on the
token), while attention and experts still change the logits by far more than rounding does.
"""

from __future__ import annotations

from zoo.draft import Draft, Key
from zoo.tokenizer import vocabulary

SOFTMAX, SIGMOID, SQRT_SOFTPLUS = 1, 2, 4
"""GGUF's numbers for what a router scores with."""


def common(
    model: Draft,
    *,
    embedding_std: float = 1.0,
    tied: bool = False,
    last_norm: str = "output_norm",
    epsilon: str = "layer_norm_rms_epsilon",
) -> None:
    """Add what every model has: its sizes, embedding, last norm and output matrix.

    Where they are `tied`, the embedding is the output matrix, too. The name of `epsilon` says
    which norm it is, to some architectures.
    """
    shape = model.shape
    model.key(
        block_count=shape.layers,
        context_length=shape.context,
        embedding_length=shape.embedding,
        feed_forward_length=shape.feed_forward,
        attention__head_count=shape.heads,
        **{f"attention__{epsilon}": 1e-6},
    )
    gain = embedding_std * shape.embedding**0.5
    model.matrix("token_embd", len(vocabulary()), shape.embedding, gain=gain)
    model.norm(last_norm, shape.embedding)
    if not tied:
        model.matrix("output", len(vocabulary()), shape.embedding, gain=3.0)


def expert_keys(model: Draft, **more: Key) -> None:
    """Add the keys of the routed experts."""
    shape = model.shape
    model.key(
        expert_count=shape.experts,
        expert_used_count=shape.experts_used,
        expert_feed_forward_length=shape.expert_feed_forward,
        **more,
    )


def grouped_query_keys(model: Draft) -> None:
    """Add the keys of grouped-query attention."""
    shape = model.shape
    model.key(
        attention__head_count_kv=shape.kv_heads,
        attention__key_length=shape.head_size,
        attention__value_length=shape.head_size,
        rope__dimension_count=shape.head_size,
        rope__freq_base=10000.0,
    )


def grouped_query(
    model: Draft,
    prefix: str,
    *,
    bias: bool = False,
    output_bias: bool = True,
    qk_norm: bool = False,
) -> None:
    """Add grouped-query attention; with `bias` all matrices have one, or all but the output."""
    shape = model.shape
    query, key = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    for name, rows in (("attn_q", query), ("attn_k", key), ("attn_v", key)):
        model.matrix(prefix + name, rows, shape.embedding)
        if bias:
            model.noise(f"{prefix}{name}.bias", rows, std=0.1)
    model.matrix(prefix + "attn_output", shape.embedding, query, gain=0.7)
    if bias and output_bias:
        model.noise(f"{prefix}attn_output.bias", shape.embedding, std=0.1)
    if qk_norm:
        model.norm(prefix + "attn_q_norm", shape.head_size)
        model.norm(prefix + "attn_k_norm", shape.head_size)


def grouped_query_in_one(model: Draft, prefix: str, *, qk_norm: bool = False) -> None:
    """Add grouped-query attention with q, k and v in one matrix."""
    shape = model.shape
    width = (shape.heads + 2 * shape.kv_heads) * shape.head_size
    model.matrix(prefix + "attn_qkv", width, shape.embedding)
    model.matrix(prefix + "attn_output", shape.embedding, shape.heads * shape.head_size, gain=0.7)
    if qk_norm:
        model.norm(prefix + "attn_q_norm", shape.head_size)
        model.norm(prefix + "attn_k_norm", shape.head_size)


def latent_keys(model: Draft, *, q_rank: int, kv_rank: int, rope: int, value_size: int = 0) -> None:
    """Add the keys of latent attention, whose cache has one key and value for all heads."""
    plain = model.shape.head_size
    if q_rank:
        model.key(attention__q_lora_rank=q_rank)
    model.key(
        attention__head_count_kv=1,
        attention__kv_lora_rank=kv_rank,
        attention__key_length=kv_rank + rope,
        attention__value_length=kv_rank,
        attention__key_length_mla=plain + rope,
        attention__value_length_mla=value_size or plain,
        rope__dimension_count=rope,
        rope__freq_base=10000.0,
    )


def yarn_keys(model: Draft, *, log_multiplier: float = 0.0) -> None:
    """Add YaRN: positions stretched to four times the context of the training."""
    model.key(
        rope__scaling__type="yarn",
        rope__scaling__factor=4.0,
        rope__scaling__original_context_length=model.shape.context // 4,
    )
    if log_multiplier:
        model.key(rope__scaling__yarn_log_multiplier=log_multiplier)


def latent_attention(
    model: Draft,
    prefix: str,
    *,
    q_rank: int,
    kv_rank: int,
    rope: int,
    value_size: int = 0,
    heads: int = 0,
    plain: int = 0,
) -> None:
    """Add multi-head latent attention, its up-projections split per head as newer files have it.

    Without a `q_rank` the queries come from one matrix. `plain` is the part of a head that is not
    rotated; it, the heads and the size of their values come from the shape unless they are given.
    """
    embedding = model.shape.embedding
    heads, plain = heads or model.shape.heads, plain or model.shape.head_size
    value = value_size or plain
    if q_rank:
        model.matrix(prefix + "attn_q_a", q_rank, embedding)
        model.norm(prefix + "attn_q_a_norm", q_rank)
        model.matrix(prefix + "attn_q_b", heads * (plain + rope), q_rank)
    else:
        model.matrix(prefix + "attn_q", heads * (plain + rope), embedding)
    model.matrix(prefix + "attn_kv_a_mqa", kv_rank + rope, embedding)
    model.norm(prefix + "attn_kv_a_norm", kv_rank)
    model.matrix(prefix + "attn_k_b", heads, kv_rank, plain)
    model.matrix(prefix + "attn_v_b", heads, value, kv_rank)
    model.matrix(prefix + "attn_output", embedding, heads * value, gain=0.7)


def next_token_head(
    model: Draft, prefix: str, *, last_norm: str = "nextn.shared_head_norm"
) -> None:
    """Add what a layer has that predicts one token more; it lies behind the layers in use."""
    embedding = model.shape.embedding
    model.matrix(prefix + "nextn.eh_proj", embedding, 2 * embedding)
    for name in ("nextn.enorm", "nextn.hnorm", last_norm):
        model.norm(prefix + name, embedding)


def gated(model: Draft, prefix: str, suffix: str, width: int) -> None:
    """Add a gated feed-forward: dense (suffix "") or shared expert ("_shexp")."""
    embedding = model.shape.embedding
    model.matrix(f"{prefix}ffn_gate{suffix}", width, embedding)
    model.matrix(f"{prefix}ffn_up{suffix}", width, embedding)
    model.matrix(f"{prefix}ffn_down{suffix}", embedding, width)


def router(model: Draft, prefix: str, *, bias: bool = False) -> None:
    """Add the router, its logits of deviation 2 so that no two experts come close to a tie."""
    shape = model.shape
    std = 2.0 / shape.embedding**0.5
    model.noise(f"{prefix}ffn_gate_inp.weight", shape.experts, shape.embedding, std=std)
    if bias:
        model.noise(f"{prefix}ffn_gate_inp.bias", shape.experts, std=0.3)


def shared_expert_keys(
    model: Draft, *, gating: int, normalised: bool = True, scale: float = 1.0
) -> None:
    """Add the keys of routed experts behind dense layers and beside shared experts."""
    shape = model.shape
    expert_keys(
        model,
        leading_dense_block_count=shape.dense_layers,
        expert_shared_count=shape.shared_experts,
        expert_gating_func=gating,
        expert_weights_norm=normalised,
        expert_weights_scale=scale,
    )


def experts(model: Draft, layer: int, *, bias: bool = False, latent: int = 0) -> None:
    """Add the routed experts of one layer; they take and give the embedding, or a `latent`."""
    shape, prefix = model.shape, f"blk.{layer}."
    count, width, embedding = shape.experts, shape.expert_feed_forward, latent or shape.embedding
    gate, up, down = shape.expert_types[(layer - shape.dense_layers) % len(shape.expert_types)]
    names = [f"{prefix}ffn_{name}_exps" for name in ("gate", "up", "down")]
    if shape.fused_gate_up:
        fused = f"{prefix}ffn_gate_up_exps"
        model.packed(fused, names[:2], count, width, embedding, type_name=gate)
    else:
        model.matrix(names[0], count, width, embedding, type_name=gate)
        model.matrix(names[1], count, width, embedding, type_name=up)
    model.matrix(names[2], count, embedding, width, gain=2.0, type_name=down)
    for name, rows in zip(names, (width, width, embedding), strict=True):
        if bias:
            model.noise(f"{name}.bias", count, rows, std=0.3)
        if shape.expert_scales:
            model.noise(f"{name}.scale", count, std=0.2, mean=1.0)


def dense_or_routed(model: Draft, layer: int, *, biased: bool = True) -> None:
    """Add a dense feed-forward, or routed experts with a shared expert and a selection bias."""
    shape, prefix = model.shape, f"blk.{layer}."
    if layer < shape.dense_layers:
        gated(model, prefix, "", shape.feed_forward)
        return
    router(model, prefix)
    if biased:
        selection_bias(model, prefix)
    shared_expert(model, prefix)
    experts(model, layer)


def selection_bias(model: Draft, prefix: str, *, std: float = 0.2) -> None:
    """Add what is added to the experts' scores when they are chosen, but not to their weights."""
    # Around a negative mean: a mask of 0.0 instead of minus infinity would be caught.
    model.noise(prefix + "exp_probs_b.bias", model.shape.experts, std=std, mean=-0.5)


def shared_expert(model: Draft, prefix: str) -> None:
    """Add the experts that every token uses, as one gated feed-forward."""
    width = model.shape.shared_feed_forward
    gated(model, prefix, "_shexp", width)


def shared_expert_gate(model: Draft, prefix: str) -> None:
    """Add the one number per token that the shared expert's output is multiplied by."""
    embedding = model.shape.embedding
    model.noise(prefix + "ffn_gate_inp_shexp.weight", embedding, std=embedding**-0.5)


def projection_biases(model: Draft, prefix: str) -> None:
    """Add biases of queries, keys and values, but not of the attention's output."""
    shape = model.shape
    heads = {"attn_q": shape.heads, "attn_k": shape.kv_heads, "attn_v": shape.kv_heads}
    for name, count in heads.items():
        model.noise(f"{prefix}{name}.bias", count * shape.head_size, std=0.1)


def pre_norm_attention(
    model: Draft, prefix: str, *, bias: bool = False, qk_norm: bool = False
) -> None:
    """Add grouped-query attention and the norms before it and before the feed-forward."""
    model.norm(prefix + "attn_norm", model.shape.embedding)
    grouped_query(model, prefix, bias=bias, qk_norm=qk_norm)
    model.norm(prefix + "ffn_norm", model.shape.embedding)


def routed_layers(model: Draft, *, qk_norm: bool = False) -> None:
    """Add all layers of a model that has attention, a router and experts in each, and no more."""
    for i in range(model.shape.layers):
        prefix = f"blk.{i}."
        pre_norm_attention(model, prefix, qk_norm=qk_norm)
        router(model, prefix)
        experts(model, i)


def wide_qk_norms(model: Draft, prefix: str) -> None:
    """Add norms over all heads of the queries together, and over all heads of the keys."""
    shape = model.shape
    model.norm(prefix + "attn_q_norm", shape.heads * shape.head_size)
    model.norm(prefix + "attn_k_norm", shape.kv_heads * shape.head_size)
