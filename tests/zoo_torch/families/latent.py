"""Types with latent attention: keys and values of all heads come from one narrow vector a token."""

from __future__ import annotations

from zoo_torch.shape import Shape

_HEADS = {"num_key_value_heads": 4}
_GROUPS = {"n_group": 4, "topk_group": 2}
_DENSE_FIRST = {"mlp_layer_types": ["dense", "sparse", "sparse"]}

TYPES: dict[str, Shape] = {
    "axk1": Shape({**_HEADS, **_GROUPS, **_DENSE_FIRST}),
    "axk2": Shape({**_HEADS, **_DENSE_FIRST}),
    "deepseek_v2": Shape({**_HEADS, "q_lora_rank": None, "n_shared_experts": 2}),
    "deepseek_v3": Shape({**_HEADS, **_GROUPS}),
    "deepseek_v32": Shape({**_HEADS, **_GROUPS, **_DENSE_FIRST}),
    "deepseek_v4": Shape(
        {
            "num_key_value_heads": 1,
            "head_dim": 32,
            "layer_types": [
                "sliding_attention",
                "compressed_sparse_attention",
                "heavily_compressed_attention",
            ],
            "compress_rates": {
                "compressed_sparse_attention": 4,
                "heavily_compressed_attention": 8,
            },
            "mlp_layer_types": ["hash_moe", "moe", "moe"],
            "hc_mult": 2,
            "o_groups": 2,
            "o_lora_rank": 16,
        }
    ),
    "dots3_note_text": Shape(
        {
            **_HEADS,
            **_DENSE_FIRST,
            "head_dim": 32,
            "layer_types": ["indexed_attention", "sliding_attention", "indexed_attention"],
            "per_layer_config": {},
            "shared_experts_intermediate_size": 48,
        }
    ),
    "glm4_moe_lite": Shape({**_HEADS, **_DENSE_FIRST}),
    "glm_moe_dsa": Shape({**_HEADS, **_DENSE_FIRST}),
    "hy_v4": Shape({**_HEADS, **_DENSE_FIRST, "hc_mult": 2}),
    "kimi_k2": Shape({**_HEADS, "num_hidden_layers": 2}, read_as="deepseek_v3"),
    "longcat_flash": Shape(
        {
            **_HEADS,
            "num_layers": 2,
            "ffn_hidden_size": 96,
            "expert_ffn_hidden_size": 48,
            "zero_expert_num": 4,
            "moe_topk": 3,
        }
    ),
    "mistral4": Shape({**_HEADS, "head_dim": 32}, architecture="Mistral4ForCausalLM"),
}
