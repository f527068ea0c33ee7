"""What each model type says in config.json beside what all of them say."""

from __future__ import annotations

from typing import Any, Literal

FormatName = Literal["float32", "bfloat16", "affine", "mxfp4"]
N_EXPERTS, VOCABULARY = 8, 272

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "partial_rotary_factor": 0.5,
    "rotary_dim": 8,
    "rms_norm_eps": 1e-6,
    "layer_norm_eps": 1e-6,
    "norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "use_bias": False,
    "use_qkv_bias": False,
    "use_qk_norm": True,
    "hidden_act": "silu",
    "sliding_window": 16,
    # Experts, by all the names that they go by.
    "moe_intermediate_size": 32,
    "num_experts": N_EXPERTS,
    "n_routed_experts": N_EXPERTS,
    "num_local_experts": N_EXPERTS,
    "moe_num_experts": N_EXPERTS,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "top_k_experts": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_layer_freq": 1,
    "norm_topk_prob": True,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "routed_scaling_factor": 1.0,
    "moe_router_topk_scaling_factor": 1.0,
    "ep_size": 1,
    "seq_aux": False,
    # Multi-head latent attention.
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}

_DELTA_NET = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 3,
}
_KDA = {
    "head_dim": 16,
    "num_heads": 4,
    "short_conv_kernel_size": 4,
    "full_attn_layers": [3],
    "kda_layers": [1, 2],
}
_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
_LING = {"layer_group_size": 3, "group_norm_size": 1, "num_nextn_predict_layers": 0}
_GRANITE = {
    "intermediate_size": 32,
    "embedding_multiplier": 1.0,
    "attention_multiplier": 0.25,
    "logits_scaling": 1.0,
    "residual_multiplier": 1.0,
}
_ROPE = {"rope_theta": 10000.0, "type": "default"}

TINY: dict[str, dict[str, Any]] = {
    "Klear": {},
    "afmoe": {"layer_types": _LAYERS},
    "bailing_hybrid": {**_LING, "num_key_value_heads": 4, "score_function": "sigmoid"},
    "bailing_moe": {"norm_head": False, "group_norm_size": 1, "max_window_layers": 3},
    "bailing_moe_linear": {**_LING, "score_function": "softmax"},
    "bailing_moe_v3": {**_LING, "num_key_value_heads": 4, "short_conv_kernel_size": 4},
    "deepseek": {},
    "deepseek_v2": {
        "topk_method": "greedy",
        "rope_scaling": {
            "type": "yarn",
            "factor": 4,
            "original_max_position_embeddings": 64,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
    },
    "deepseek_v3": {"num_key_value_heads": 4},
    "deepseek_v32": {
        "index_head_dim": 16,
        "index_n_heads": 4,
        "index_topk": 64,
        "num_key_value_heads": 4,
    },
    "deepseek_v41": {
        "num_key_value_heads": 1,
        "head_dim": 32,
        "o_groups": 2,
        "o_lora_rank": 16,
        "scoring_func": "sqrtsoftplus",
        "index_head_dim": 16,
        "index_n_heads": 4,
        "index_topk": 64,
        "compress_ratios": [0, 0, 0],
        "hc_mult": 2,
    },
    "dots1": {},
    "ernie4_5_moe": {},
    "exaone_moe": {
        "is_moe_layer": [False, True, True],
        "layer_types": _LAYERS,
        "sliding_window_pattern": "LGL",
    },
    "gemma4_text": {
        "enable_moe_block": True,
        "layer_types": _LAYERS,
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "global_head_dim": 16,
    },
    "glm4_moe": {},
    "glm4_moe_lite": {"num_key_value_heads": 4},
    "glm_moe_dsa": {
        "index_head_dim": 16,
        "index_n_heads": 4,
        "index_topk": 64,
        "num_key_value_heads": 4,
        "rope_parameters": _ROPE,
    },
    "gpt_oss": {
        "intermediate_size": 32,
        "layer_types": _LAYERS,
    },
    "granitemoe": _GRANITE,
    "granitemoehybrid": {**_GRANITE, "layer_types": ["attention"] * 3},
    "hunyuan": {
        "num_shared_expert": 1,
        "use_mixed_mlp_moe": True,
        "use_cla": False,
        "cla_share_factor": 2,
        "rope_scaling": {"alpha": 1000.0, "factor": 1.0, "type": "dynamic"},
    },
    "jamba": {
        "intermediate_size": 32,
        "attn_layer_offset": 1,
        "attn_layer_period": 3,
        "expert_layer_offset": 0,
        "expert_layer_period": 1,
        "mamba_d_conv": 4,
        "mamba_d_state": 8,
        "mamba_expand": 2,
    },
    "kimi_k2": {"num_key_value_heads": 4},
    "kimi_k25": {"text_config": {"model_type": "kimi_k2", "num_key_value_heads": 4}},
    "kimi_k3": {
        "text_config": {
            "model_type": "kimi_linear",
            "num_key_value_heads": 4,
            "linear_attn_config": _KDA,
            "hidden_act": "situ",
        }
    },
    "kimi_linear": {
        "q_lora_rank": None,
        "num_key_value_heads": 4,
        "linear_attn_config": _KDA,
        "model_max_length": 2048,
    },
    "laguna": {
        "layer_types": _LAYERS,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "rope_parameters": {"sliding_attention": _ROPE, "full_attention": _ROPE},
    },
    "lfm2_moe": {
        "layer_types": ["conv", "full_attention", "conv"],
        "full_attn_idxs": [1],
        "conv_L_cache": 3,
        "conv_bias": False,
        "use_expert_bias": True,
    },
    "llama4": {
        "text_config": {
            "model_type": "llama4_text",
            "attention_chunk_size": 16,
            "num_hidden_layers": 4,
            "intermediate_size": 32,
            "intermediate_size_mlp": 96,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 1,
            "no_rope_layers": [],
            "rope_scaling": {
                "factor": 8.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 128,
                "rope_type": "llama3",
            },
        }
    },
    "longcat_flash": {
        "attention_method": "MLA",
        "zero_expert_type": "identity",
        "zero_expert_num": 4,
        "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True,
        "num_layers": 2,
        "ffn_hidden_size": 96,
        "expert_ffn_hidden_size": 32,
        "moe_topk": 3,
    },
    "mellum": {
        "layer_types": _LAYERS,
        "rope_parameters": {"sliding_attention": _ROPE, "full_attention": _ROPE},
    },
    "mimo_v2_flash": {
        "hybrid_layer_pattern": [0, 1, 0],
        "moe_layer_freq": [0, 1, 1],
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
        "sliding_window_size": 16,
        "swa_head_dim": 16,
        "swa_v_head_dim": 16,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_rope_theta": 10000.0,
        "layernorm_epsilon": 1e-6,
    },
    "minimax": {"intermediate_size": 32, "attn_type_list": [1, 1, 1]},
    "minimax_m3_vl": {
        "text_config": {
            "model_type": "minimax_m3",
            "intermediate_size": 32,
            "dense_intermediate_size": 96,
            "mlp_layer_types": ["dense", "sparse", "sparse"],
        }
    },
    "mistral4": {
        "num_key_value_heads": 4,
        "rope_parameters": {
            **_ROPE,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 128,
        },
    },
    "mixtral": {"intermediate_size": 32},
    "nemotron_h": {
        "hybrid_override_pattern": "ME*E",
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "mamba_proj_bias": False,
        "ssm_state_size": 16,
        "conv_kernel": 4,
        "n_groups": 1,
        "mlp_bias": False,
        "layer_norm_epsilon": 1e-5,
        "use_conv_bias": True,
        "moe_shared_expert_intermediate_size": 32,
    },
    "olmoe": {"intermediate_size": 32},
    "phimoe": {
        "intermediate_size": 32,
        "original_max_position_embeddings": 128,
        "rope_scaling": {
            "long_factor": [1.0] * 8,
            "short_factor": [1.0] * 8,
            "long_mscale": 1.0,
            "short_mscale": 1.0,
            "original_max_position_embeddings": 128,
            "type": "longrope",
        },
    },
    "phixtral": {
        "num_vocab": VOCABULARY,
        "model_dim": 64,
        "num_heads": 4,
        "num_layers": 2,
        "rotary_dim": 8,
    },
    "qwen2_moe": {},
    "qwen3_5_moe": {
        "text_config": {
            "model_type": "qwen3_5_moe_text",
            **_DELTA_NET,
            "rope_parameters": {
                **_ROPE,
                "partial_rotary_factor": 0.5,
                "mrope_section": [2, 1, 1],
            },
        }
    },
    "qwen3_moe": {},
    "qwen3_next": _DELTA_NET,
    "qwen3_vl_moe": {"text_config": {"model_type": "qwen3_moe"}},
    "solar_open": {},
    "step3p5": {
        "num_attention_groups": 2,
        "moe_num_experts": 8,
        "moe_top_k": 2,
        "share_expert_dim": 32,
        "layer_types": ["full_attention"] * 3,
    },
}


_BY_LAYER = ("layer_types", "mlp_layer_types", "compress_ratios")


def tiny_config(model_type: str, n_layers: int | None = None) -> dict[str, Any]:
    """Return what config.json says of a tiny model of this type.

    With `n_layers` it has so many, all further ones like the last.
    """
    own = TINY[model_type]
    found = {**COMMON, "model_type": model_type, **own}
    if "text_config" in own:
        found["text_config"] = {**COMMON, **own["text_config"]}
    if n_layers is not None:
        text = found.get("text_config", found)
        text["num_hidden_layers"] = n_layers
        for name in _BY_LAYER:
            if name in text:
                text[name] = [*text[name], *text[name][-1:] * n_layers][:n_layers]
    return found
