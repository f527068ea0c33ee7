"""Types with recurrent or convolutional layers, whose state holds no single token."""

from __future__ import annotations

from zoo_torch.shape import VOCABULARY, Shape

_HEADS = {"num_key_value_heads": 4}

TYPES: dict[str, Shape] = {
    "bailing_hybrid": Shape(
        {**_HEADS, "num_hidden_layers": 4, "layer_group_size": 2, "first_k_dense_replace": 1}
    ),
    "granitemoehybrid": Shape(
        {
            "intermediate_size": 48,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "mamba_n_heads": 4,
            "mamba_d_head": 32,
            "mamba_d_state": 16,
            "mamba_chunk_size": 16,
        }
    ),
    "inkling2_text": Shape(
        {
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 2,
            "swa_head_dim": 16,
            "sliding_window_size": 16,
            "rel_extent": 64,
            "unpadded_vocab_size": VOCABULARY,
            "layer_types": ["hybrid_sliding", "hybrid_sliding", "hybrid"],
        }
    ),
    "inkling_text": Shape(
        {
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 2,
            "swa_head_dim": 16,
            "sliding_window_size": 16,
            "rel_extent": 64,
            "logits_mup_width_multiplier": 1.0,
            "layer_types": ["hybrid_sliding", "hybrid_sliding", "hybrid"],
            "mlp_layer_types": ["dense", "sparse", "sparse"],
        }
    ),
    "jamba": Shape(
        {
            "intermediate_size": 48,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 1,
            "expert_layer_offset": 0,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        }
    ),
    "kimi_linear": Shape(
        {
            **_HEADS,
            "num_hidden_layers": 4,
            "layer_types": [*["linear_attention"] * 3, "full_attention"],
        }
    ),
    "lfm2_moe": Shape({"layer_types": ["conv", "full_attention", "conv"]}),
    "minimax": Shape({"intermediate_size": 48, "block_size": 16}),
    "nemotron_h": Shape(
        {
            "layers_block_type": ["linear_attention", "moe", "full_attention", "moe", "mlp"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 32,
            "ssm_state_size": 16,
            "n_groups": 2,
            "chunk_size": 16,
        }
    ),
    "qwen3_5_moe_text": Shape({"num_hidden_layers": 4}),
    "qwen3_next": Shape({"num_hidden_layers": 4}),
    "qwen4_exp_text": Shape(
        {
            "num_hidden_layers": 4,
            "hc_count": 2,
            "hc_lowrank": 16,
            "indexer_n_heads": 8,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 16,
            "indexer_compress_ratio": 4,
        }
    ),
    "zaya": Shape(
        {"num_experts_per_tok": 1, "router_hidden_size": 64}, gains={"router_mlp.out_proj": 5.0}
    ),
}
