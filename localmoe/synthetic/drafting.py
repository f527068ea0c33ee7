"""From a configuration to the keys and tensors of its GGUF file."""

from __future__ import annotations

from localmoe.synthetic.attention import attention_keys, token_mixer
from localmoe.synthetic.config import Config
from localmoe.synthetic.draft import Draft

_AFTER_ATTENTION = ("glm4moe", "gpt-oss", "qwen3next", "qwen35moe")
"""Architectures that call the feed-forward's norm by what comes before it."""


def draft_model(config: Config) -> Draft:
    """Declare a whole model.

    Gains keep a token's own direction through all layers, so that routing depends on the token.
    """
    draft = Draft(config)
    embedding = config.embedding
    draft.key(
        block_count=config.layers,
        context_length=config.context_tokens,
        embedding_length=embedding,
        feed_forward_length=config.feed_forward or config.expert_feed_forward,
    )
    attention_keys(draft)
    _expert_keys(draft)
    # afmoe's graph multiplies the embedding by the root of its width.
    draft.matrix("token_embd", config.vocabulary, embedding, gain=_embedding_gain(config))
    draft.norms("output_norm", size=embedding)
    draft.matrix("output", config.vocabulary, embedding, gain=3.0)
    moe_layers = set(config.moe_layers)
    for layer in range(config.layers):
        _layer(draft, layer, routed=layer in moe_layers)
    return draft


def _embedding_gain(config: Config) -> float:
    return 1.0 if config.architecture == "afmoe" else config.embedding**0.5


def _expert_keys(draft: Draft) -> None:
    config = draft.config
    draft.key(
        expert_count=config.experts,
        expert_used_count=config.experts_used,
        expert_feed_forward_length=config.expert_feed_forward,
    )
    if config.dense_layers:
        draft.key(leading_dense_block_count=config.dense_layers)
    if config.moe_step > 1:
        draft.key(interleave_moe_layer_step=config.moe_step)
    if config.architecture == "llama4" and config.moe_step == 1:
        draft.key(interleave_moe_layer_step=1)
    if config.delta:
        draft.key(expert_shared_feed_forward_length=config.shared_feed_forward)
    elif config.shared_feed_forward and config.architecture != "llama4":
        draft.key(
            expert_shared_count=config.shared_feed_forward // config.expert_feed_forward,
            expert_gating_func=config.gating,
            expert_weights_norm=config.normalised,
            expert_weights_scale=config.route_scale,
        )
    if config.groups[0] > 1:
        draft.key(expert_group_count=config.groups[0], expert_group_used_count=config.groups[1])


def _layer(draft: Draft, layer: int, *, routed: bool) -> None:
    config, prefix = draft.config, f"blk.{layer}."
    names = ["attn_norm"]
    names.append("post_attention_norm" if config.architecture in _AFTER_ATTENTION else "ffn_norm")
    if config.architecture == "afmoe":
        names += ["post_attention_norm", "post_ffw_norm"]
    draft.norms(*(prefix + name for name in names), size=config.embedding)
    token_mixer(draft, layer)
    if routed:
        _experts(draft, prefix)
    else:
        _gated(draft, prefix, "", config.feed_forward)


def _gated(draft: Draft, prefix: str, suffix: str, width: int) -> None:
    """Add a gated feed-forward: dense (suffix "") or shared expert ("_shexp")."""
    embedding = draft.config.embedding
    draft.matrix(f"{prefix}ffn_gate{suffix}", width, embedding)
    draft.matrix(f"{prefix}ffn_up{suffix}", width, embedding)
    draft.matrix(f"{prefix}ffn_down{suffix}", embedding, width)


def _experts(draft: Draft, prefix: str) -> None:
    config = draft.config
    count, width, embedding = config.experts, config.expert_feed_forward, config.embedding
    # Logits of deviation 2: no two experts come close to a tie.
    draft.vector(f"{prefix}ffn_gate_inp.weight", count, embedding, std=2.0 / embedding**0.5)
    if config.selection_bias:
        draft.vector(prefix + "exp_probs_b.bias", count)
    if config.shared_gate:
        draft.vector(prefix + "ffn_gate_inp_shexp.weight", embedding, std=embedding**-0.5)
    if config.shared_feed_forward:
        _gated(draft, prefix, "_shexp", config.shared_feed_forward)
    draft.matrix(f"{prefix}ffn_gate_exps", count, width, embedding)
    draft.matrix(f"{prefix}ffn_up_exps", count, width, embedding)
    draft.matrix(f"{prefix}ffn_down_exps", count, embedding, width, gain=2.0)
    if config.biases == "all":
        draft.vector(f"{prefix}ffn_gate_inp.bias", count)
        for name, rows in (("gate", width), ("up", width), ("down", embedding)):
            draft.vector(f"{prefix}ffn_{name}_exps.bias", count, rows)
