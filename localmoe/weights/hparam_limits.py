"""What llama.cpp takes for granted: ranges of hyperparameters, and needs of architectures."""

from __future__ import annotations

from localmoe.weights.gguf import MAX_EXPERTS, MAX_LAYERS

MAX_WIDTH = 1 << 20
MAX_CONTEXT_TOKENS = 1 << 30

RANGES: dict[str, tuple[float, float]] = {
    "block_count": (1, MAX_LAYERS),
    "context_length": (1, MAX_CONTEXT_TOKENS),
    "embedding_length": (1, MAX_WIDTH),
    "embedding_length_out": (0, MAX_WIDTH),
    "feed_forward_length": (0, MAX_WIDTH),
    "expert_feed_forward_length": (0, MAX_WIDTH),
    "expert_shared_feed_forward_length": (0, MAX_WIDTH),
    "expert_chunk_feed_forward_length": (0, MAX_WIDTH),
    "leading_dense_block_count": (0, MAX_LAYERS),
    "nextn_predict_layers": (0, MAX_LAYERS),
    "expert_count": (0, MAX_EXPERTS),
    "expert_shared_count": (0, MAX_EXPERTS),
    "expert_gating_func": (1, 4),
    "experts_per_group": (1, MAX_EXPERTS),
    "interleave_moe_layer_step": (1, MAX_LAYERS),
    "full_attention_interval": (1, MAX_LAYERS),
    "attention.head_count": (0, 1 << 16),
    "attention.head_count_kv": (0, 1 << 16),
    "attention.key_length": (1, 1 << 16),
    "attention.value_length": (1, 1 << 16),
    "attention.key_length_mla": (0, 1 << 16),
    "attention.value_length_mla": (0, 1 << 16),
    "attention.key_length_swa": (1, 1 << 16),
    "attention.value_length_swa": (1, 1 << 16),
    "attention.q_lora_rank": (0, MAX_WIDTH),
    "attention.kv_lora_rank": (0, MAX_WIDTH),
    "attention.sliding_window": (0, MAX_CONTEXT_TOKENS),
    "attention.temperature_length": (0, MAX_CONTEXT_TOKENS),
    "attention.layer_norm_epsilon": (0, 1),
    "attention.layer_norm_rms_epsilon": (0, 1),
    "attention.group_norm_epsilon": (0, 1),
    "rope.dimension_count": (0, 1 << 16),
    "rope.dimension_count_swa": (0, 1 << 16),
    "rope.freq_base": (1e-3, 1e30),
    "rope.freq_base_swa": (1e-3, 1e30),
    "rope.scaling.factor": (0, 1e9),
    "rope.scale_linear": (0, 1e9),
    "rope.scaling.yarn_log_multiplier": (-100, 100),
    "rope.scaling.original_context_length": (1, MAX_CONTEXT_TOKENS),
    "ssm.conv_kernel": (1, 1 << 10),
    "ssm.inner_size": (1, MAX_WIDTH),
    "ssm.state_size": (1, 1 << 16),
    "ssm.time_step_rank": (1, 1 << 16),
    "shortconv.l_cache": (2, 1 << 10),
}
"""Least and most of a key, for each element if it is an array."""

ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")

_WHOLE_ROTATION = """
arctic cohere2moe dbrx deepseek dots1 ernie4_5-moe exaone-moe granite granitemoe granite_swa grok
grovemoe hunyuan-moe hy_v3 llada-moe llama llama4 mellum mistral3 olmoe qwen2moe qwen3moe
qwen3vlmoe rnd1 smallthinker
"""
_PARTIAL_ROTATION = """
afmoe bailingmoe2 glm4moe gpt-oss maple minimax-m2 minimax-m3 qwen3next qwen35moe
"""
_NO_ROTATION = "granitehybrid nemotron_h_moe"

ROTATES_WHOLE_HEAD = frozenset(_WHOLE_ROTATION.split())
"""Architectures whose graph asserts that keys, values and rotation are equally wide."""

ROTATES = ROTATES_WHOLE_HEAD | frozenset(_PARTIAL_ROTATION.split())
"""Architectures that hang or abort without any rotation."""

EQUAL_HEADS = ROTATES | frozenset(_NO_ROTATION.split())
"""Architectures whose graph asserts that keys and values are equally wide."""

LATENT = frozenset(("deepseek2", "deepseek32", "glm-dsa"))
"""Architectures that cache one latent vector for all heads, with the rotated part behind it."""

NEEDS_WINDOW = frozenset(("afmoe",))
"""Architectures that crash without attention.sliding_window."""

NEEDS_GATING = frozenset(("dots1", "minimax-m2", "smallthinker", "hy_v4"))
"""Architectures that abort without expert_gating_func."""
