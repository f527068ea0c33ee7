"""Declares what lets tokens see each other: attention of several kinds, or a delta net."""

from __future__ import annotations

from localmoe.synthetic.config import DeltaNet, Latent
from localmoe.synthetic.draft import Draft

FULL_ATTENTION_INTERVAL = 4
"""Among delta nets every so many layers one has attention."""
_CONVOLUTION_TOKENS = 4


def attention_keys(draft: Draft) -> None:
    """Add the keys of a model's attention."""
    config = draft.config
    draft.key(attention__head_count=config.heads, attention__layer_norm_rms_epsilon=1e-6)
    draft.key(rope__freq_base=config.rope_base)
    if config.window:
        draft.key(attention__sliding_window=config.window)
    if config.yarn:
        factor, original = config.yarn
        draft.key(rope__scaling__type="yarn", rope__scaling__factor=factor)
        draft.key(rope__scaling__original_context_length=original)
    if config.latent:
        _latent_keys(draft, config.latent)
    else:
        draft.key(
            attention__head_count_kv=config.kv_heads,
            attention__key_length=config.head_size,
            attention__value_length=config.head_size,
            rope__dimension_count=config.rope_dimensions or config.head_size,
        )
    if config.delta:
        _delta_keys(draft, config.delta)


def token_mixer(draft: Draft, layer: int) -> None:
    """Add the tensors of one layer's attention, or of its delta net."""
    config, prefix = draft.config, f"blk.{layer}."
    if config.latent:
        _latent(draft, prefix, config.latent)
    elif config.delta and (layer + 1) % FULL_ATTENTION_INTERVAL:
        _delta_net(draft, prefix, config.delta)
    else:
        _grouped_query(draft, prefix)


def _grouped_query(draft: Draft, prefix: str) -> None:
    config = draft.config
    query, keys = config.heads * config.head_size, config.kv_heads * config.head_size
    # The hybrids' queries come with a gate for the output.
    rows = {"attn_q": query * (2 if config.delta else 1), "attn_k": keys, "attn_v": keys}
    for name, width in rows.items():
        draft.matrix(prefix + name, width, config.embedding)
        if config.biases:
            draft.vector(f"{prefix}{name}.bias", width)
    draft.matrix(prefix + "attn_output", config.embedding, query, gain=0.7)
    if config.biases == "all":
        draft.vector(f"{prefix}attn_output.bias", config.embedding)
        draft.vector(prefix + "attn_sinks.weight", config.heads)
    if config.architecture == "afmoe":
        draft.matrix(prefix + "attn_gate", query, config.embedding)
    if config.qk_norm:
        sizes = (query, keys) if config.qk_norm == "all" else (config.head_size,) * 2
        draft.norms(prefix + "attn_q_norm", size=sizes[0])
        draft.norms(prefix + "attn_k_norm", size=sizes[1])


def _latent_keys(draft: Draft, latent: Latent) -> None:
    draft.key(
        attention__head_count_kv=1,
        attention__q_lora_rank=latent.q_rank,
        attention__kv_lora_rank=latent.kv_rank,
        attention__key_length=latent.kv_rank + latent.rope,
        attention__value_length=latent.kv_rank,
        attention__key_length_mla=latent.plain + latent.rope,
        attention__value_length_mla=latent.value,
        rope__dimension_count=latent.rope,
    )
    if latent.indexer:
        heads, size, chosen = latent.indexer
        draft.key(
            attention__indexer__head_count=heads,
            attention__indexer__key_length=size,
            attention__indexer__top_k=chosen,
        )


def _latent(draft: Draft, prefix: str, latent: Latent) -> None:
    heads, embedding = draft.config.heads, draft.config.embedding
    draft.matrix(prefix + "attn_q_a", latent.q_rank, embedding)
    draft.norms(prefix + "attn_q_a_norm", size=latent.q_rank)
    draft.matrix(prefix + "attn_q_b", heads * (latent.plain + latent.rope), latent.q_rank)
    draft.matrix(prefix + "attn_kv_a_mqa", latent.kv_rank + latent.rope, embedding)
    draft.norms(prefix + "attn_kv_a_norm", size=latent.kv_rank)
    draft.matrix(prefix + "attn_k_b", heads, latent.kv_rank, latent.plain)
    draft.matrix(prefix + "attn_v_b", heads, latent.value, latent.kv_rank)
    draft.matrix(prefix + "attn_output", embedding, heads * latent.value, gain=0.7)
    if latent.indexer:
        index_heads, size, _ = latent.indexer
        draft.norms(prefix + "indexer.k_norm", size=size)
        draft.vector(prefix + "indexer.k_norm.bias", size)
        draft.matrix(prefix + "indexer.proj", index_heads, embedding)
        draft.matrix(prefix + "indexer.attn_k", size, embedding)
        draft.matrix(prefix + "indexer.attn_q_b", index_heads * size, latent.q_rank)


def _delta_keys(draft: Draft, delta: DeltaNet) -> None:
    draft.key(
        full_attention_interval=FULL_ATTENTION_INTERVAL,
        ssm__conv_kernel=_CONVOLUTION_TOKENS,
        ssm__inner_size=delta.value_heads * delta.state,
        ssm__state_size=delta.state,
        ssm__time_step_rank=delta.value_heads,
        ssm__group_count=delta.key_heads,
    )
    if not delta.joined_gates:
        # Time, height and width of a picture; for text all three are the same.
        draft.key(rope__dimension_sections=[11, 11, 10, 0])


def _delta_net(draft: Draft, prefix: str, delta: DeltaNet) -> None:
    embedding, values = draft.config.embedding, delta.value_heads * delta.state
    mixed = 2 * delta.key_heads * delta.state + values
    draft.matrix(prefix + "attn_qkv", mixed, embedding)
    draft.matrix(prefix + "attn_gate", values, embedding)
    draft.vector(prefix + "ssm_conv1d.weight", mixed, _CONVOLUTION_TOKENS, std=0.5)
    draft.vector(prefix + "ssm_dt.bias", delta.value_heads)
    # Minus one: half of the state is gone after one token.
    draft.vector(prefix + "ssm_a", delta.value_heads, mean=-1.0)
    draft.norms(prefix + "ssm_norm", size=delta.state)
    draft.matrix(prefix + "ssm_out", embedding, values)
    if delta.joined_gates:
        draft.matrix(prefix + "ssm_ba", 2 * delta.value_heads, embedding)
    else:
        draft.matrix(prefix + "ssm_beta", delta.value_heads, embedding)
        draft.matrix(prefix + "ssm_alpha", delta.value_heads, embedding)
