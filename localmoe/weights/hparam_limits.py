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
    "attention.compress_rope_freq_base": (1e-3, 1e30),
    "attention.indexer.top_k": (1, MAX_CONTEXT_TOKENS),
    "attention.indexer.block_size": (1, MAX_CONTEXT_TOKENS),
    "attention.temperature_length": (0, MAX_CONTEXT_TOKENS),
    "attention.layer_norm_epsilon": (0, 1),
    "attention.layer_norm_rms_epsilon": (0, 1),
    "attention.group_norm_epsilon": (0, 1),
    "rope.dimension_count": (0, 1 << 16),
    "rope.dimension_count_swa": (0, 1 << 16),
    "rope.dimension_sections": (0, 1 << 16),
    "rope.freq_base": (1e-3, 1e30),
    "rope.freq_base_swa": (1e-3, 1e30),
    "rope.scaling.attn_factor": (0, 1e3),
    "rope.scaling.factor": (0, 1e9),
    "rope.scale_linear": (0, 1e9),
    "rope.scaling.yarn_log_multiplier": (-100, 100),
    "rope.scaling.original_context_length": (1, MAX_CONTEXT_TOKENS),
    "ssm.conv_kernel": (1, 1 << 10),
    "ssm.inner_size": (1, MAX_WIDTH),
    "ssm.state_size": (1, 1 << 16),
    "ssm.time_step_rank": (1, 1 << 16),
    "shortconv.l_cache": (2, 1 << 10),
    "wkv.head_size": (1, 1 << 16),
    "hyper_connection.sinkhorn_iterations": (0, 1000),
    "kda.gate_lower_bound": (-1000, 0),
}
"""Least and most of a key, for each element if it is an array."""

_GRANITE = "granite granite_swa granitehybrid granitemoe graniteswitch minicpm"

ARCHITECTURE_RANGES: dict[str, dict[str, tuple[float, float]]] = {
    # The loader takes experts in every layer, but the graph would leave most of them out.
    "ernie4_5-moe": {"interleave_moe_layer_step": (1, 1)},
    # Without windows the graph asserts, when it computes, that it has a length to divide by.
    "llama4": {"attention.sliding_window": (1, MAX_CONTEXT_TOKENS)},
    # The loader takes experts, the graph leaves them out.
    "refact": {"expert_count": (0, 0)},
    # Divided by.
    "grok": {"attn_logit_softcapping": (1e-6, 1e9)},
    **dict.fromkeys(_GRANITE.split(), {"logit_scale": (1e-6, 1e9)}),
}
"""The same, narrower, for what one architecture of llama.cpp aborts on or computes wrongly."""

WKV_STEP = 64
"""Elements of a head that RWKV's kernels compute at once; a rest overruns memory."""

ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")

_WHOLE_ROTATION = """
apertus arcee arctic baichuan chameleon codeshell cogvlm cohere2moe dbrx deci deepseek dots1
ernie4_5 ernie4_5-moe exaone exaone-moe exaone4 falcon granite granite_swa granitemoe graniteswitch
grok grovemoe hunyuan-dense hunyuan-moe hunyuan_vl hy_v3 internlm2 jais2 llada-moe llama llama4
maincoder mellum minicpm mistral3 olmo olmo2 olmoe orion paddleocr pangu-embedded plamo qwen2
qwen2moe qwen2vl qwen3 qwen3moe qwen3vl qwen3vlmoe rnd1 seed_oss smallthinker smollm3 starcoder2
talkie xverse
"""
_PARTIAL_ROTATION = """
afmoe bailingmoe2 bitnet chatglm cohere2 command-r glm4 glm4moe gpt-oss gptneox laguna lfm2 lfm2moe
maple minimax-01 minimax-m2 minimax-m3 muse-glimmer nanbeige nemotron openelm phi2 phi3 phimoe qwen
qwen35 qwen35moe qwen3next spark2_5 stablelm
"""
_ROTATION_IN_SECTIONS = "paddleocr qwen2vl qwen35 qwen35moe qwen3vl qwen3vlmoe qwen4exp"
_UNEQUAL_HEADS = """
falcon-h1 gemma gemma2 gemma3 gemma3n gemma4 mimo2 minicpm3 plamo2 plamo3 plm step35
"""
_NO_ROTATION = "bloom gpt2 jais mpt nemotron_h nemotron_h_moe refact starcoder"

ROTATES_WHOLE_HEAD = frozenset(_WHOLE_ROTATION.split())
"""Architectures whose graph asserts that keys, values and rotation are equally wide."""

_ROTATES_EQUAL_HEADS = ROTATES_WHOLE_HEAD | frozenset(_PARTIAL_ROTATION.split())

ROTATES = _ROTATES_EQUAL_HEADS | frozenset(_UNEQUAL_HEADS.split())
"""Architectures that hang or abort without any rotation."""

ROTATES_HALF_OF_IT = frozenset(("step35",))
"""Architectures that rotate half of what they say in layers without a window."""

NEVER_ROTATES = frozenset(_NO_ROTATION.split())
"""Architectures that rotate nothing, whatever their metadata say."""

EQUAL_HEADS = _ROTATES_EQUAL_HEADS | NEVER_ROTATES | {"granitehybrid"}
"""Architectures whose graph asserts that keys and values are equally wide."""

ROTATES_IN_SECTIONS = frozenset(_ROTATION_IN_SECTIONS.split())
"""Architectures that abort without rope.dimension_sections."""

LATENT = frozenset(("deepseek2", "deepseek32", "glm-dsa", "mistral4"))
"""Architectures that cache one latent vector for all heads, with the rotated part behind it."""

WITHOUT_ATTENTION = frozenset(("arwkv7", "mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7"))
"""Architectures whose layers are all recurrent: they have no heads."""

NEEDS_WINDOW = frozenset(("afmoe",))
"""Architectures that crash without attention.sliding_window."""

NEEDS_GATING = frozenset(("dots1", "minimax-m2", "smallthinker", "hy_v4"))
"""Architectures that abort without expert_gating_func."""

SCALES_QUERIES = frozenset(("deepseek2", "mistral4"))
"""Architectures that abort, when they compute, with attention.temperature_scale and no length."""
