"""Types whose attention keeps keys and values of every token, or of those in a window."""

from __future__ import annotations

from zoo_torch.shape import Shape

_NARROW = {"intermediate_size": 32}
"""Where `intermediate_size` is the width of an expert."""
_EVERY_SECOND = ["sliding_attention", "full_attention", "sliding_attention"]
_DENSE_FIRST = ["dense", "sparse", "sparse"]

TYPES: dict[str, Shape] = {
    "afmoe": Shape(
        {"num_hidden_layers": 4, "global_attn_every_n_layers": 2, "mup_enabled": True}
    ),
    "aria_text": Shape(_NARROW),
    "beam": Shape({"layer_types": _EVERY_SECOND, "mlp_layer_types": _DENSE_FIRST}),
    "cohere2_moe": Shape({**_NARROW, "num_hidden_layers": 4}),
    "dots1": Shape(),
    "ernie4_5_moe": Shape({"moe_layer_end_index": 2}),
    "ernie4_5_vl_moe_text": Shape(),
    "exaone_moe": Shape({"num_hidden_layers": 4}),
    "flex_olmo": Shape({**_NARROW}),
    "flint": Shape({"mlp_only_layers": [0], "layer_types": _EVERY_SECOND}),
    "gemma4_text": Shape({"enable_moe_block": True, "layer_types": _EVERY_SECOND}),
    "glm4_moe": Shape({"use_qk_norm": True}),
    "glm4v_moe_text": Shape(architecture=""),
    "gpt_oss": Shape(_NARROW),
    "granitemoe": Shape(_NARROW),
    "granitemoe_swa": Shape(_NARROW),
    "granitemoeshared": Shape(_NARROW),
    "hunyuan_v1_moe": Shape({**_NARROW}),
    "hy_v3": Shape(),
    "kolibri1": Shape(),
    "laguna": Shape(),
    "llama4_text": Shape({"intermediate_size": 32, "intermediate_size_mlp": 96, "num_hidden_layers": 4, "attention_chunk_size": 16}),
    "mellum": Shape(),
    "mimo_v2_flash": Shape(),
    "minimax_m2": Shape(_NARROW),
    "minimax_m3_vl_text": Shape({**_NARROW}),
    "mixtral": Shape(_NARROW),
    "muse_spark_text": Shape(),
    "olmoe": Shape(_NARROW),
    "phimoe": Shape(_NARROW),
    "qwen2_moe": Shape(),
    "qwen3_moe": Shape(),
    "qwen3_omni_moe_text": Shape(),
    "qwen3_vl_moe_text": Shape(),
    "solar_open": Shape(),
    "step3p5": Shape(),
    "unlimited_ocr_text": Shape(),
    "deepseek_ocr2_text": Shape(),
}
