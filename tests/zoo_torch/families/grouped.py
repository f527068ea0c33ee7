"""Types whose attention keeps keys and values of every token, or of those in a window."""

from __future__ import annotations

from zoo_torch.shape import VOCABULARY, Shape

_NARROW = {"intermediate_size": 48}
"""Where `intermediate_size` is the width of an expert."""
_WINDOWS = ["sliding_attention", "full_attention", "sliding_attention"]
_DENSE_FIRST = ["dense", "sparse", "sparse"]

TYPES: dict[str, Shape] = {
    "afmoe": Shape({"num_hidden_layers": 4, "global_attn_every_n_layers": 2, "mup_enabled": True}),
    "aria_text": Shape(_NARROW),
    "beam": Shape({"layer_types": _WINDOWS, "mlp_layer_types": _DENSE_FIRST}),
    "cohere2_moe": Shape({**_NARROW, "num_hidden_layers": 4, "logit_scale": 1.0}),
    "dots1": Shape(),
    "ernie4_5_moe": Shape({"moe_layer_end_index": 2}),
    "exaone_moe": Shape({"num_hidden_layers": 4}),
    "flex_olmo": Shape(_NARROW),
    "flint": Shape({"mlp_only_layers": [0], "layer_types": _WINDOWS}),
    "gemma4_text": Shape(
        {
            "enable_moe_block": True,
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            "per_layer_config": {},
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 16,
        }
    ),
    "glm4_moe": Shape({"use_qk_norm": True}),
    "gpt_oss": Shape(_NARROW),
    "granitemoe": Shape(_NARROW),
    "granitemoe_swa": Shape(_NARROW),
    "granitemoeshared": Shape(_NARROW),
    "hunyuan_v1_moe": Shape(_NARROW),
    "hy_v3": Shape(),
    "kolibri1": Shape(),
    "laguna": Shape(
        {
            "layer_types": _WINDOWS,
            "mlp_layer_types": _DENSE_FIRST,
            "num_attention_heads_per_layer": [2, 4, 2],
        }
    ),
    "llama4_text": Shape(
        {
            **_NARROW,
            "intermediate_size_mlp": 96,
            "num_hidden_layers": 4,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 16,
        }
    ),
    "mellum": Shape({"layer_types": _WINDOWS}),
    "mimo_v2_flash": Shape(
        {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}
    ),
    "minimax_m2": Shape(_NARROW),
    "minimax_m3_vl_text": Shape(
        {
            **_NARROW,
            "dense_intermediate_size": 96,
            "rotary_dim": 8,
            "index_block_size": 8,
            "index_topk_blocks": 2,
            "mlp_layer_types": _DENSE_FIRST,
        }
    ),
    "mixtral": Shape(_NARROW),
    "olmoe": Shape(_NARROW),
    "phimoe": Shape({**_NARROW, "lm_head_bias": True, "attention_bias": True}),
    "qwen2_moe": Shape({"mlp_only_layers": [1]}),
    "qwen3_moe": Shape({"num_experts_per_tok": 4, "norm_topk_prob": True}),
    "solar_open": Shape(),
}
