"""Types that also take pictures: a text model inside, and a part that sees, not run here."""

from __future__ import annotations

from zoo_torch.shape import Shape

_DENSE_FIRST = {"mlp_layer_types": ["dense", "sparse", "sparse"]}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

TYPES: dict[str, Shape] = {
    "ernie4_5_vl_moe": Shape(
        {
            **_DENSE_FIRST,
            "moe_intermediate_size": [48, 24],
            "rope_parameters": {**_ROPE, "mrope_section": [3, 3, 2]},
        },
        "Ernie4_5_VLMoeForConditionalGeneration",
        text_type="ernie4_5_vl_moe_text",
    ),
    "gemma4": Shape(architecture="Gemma4ForConditionalGeneration", text_type="gemma4_text"),
    "glm4v_moe": Shape(
        {
            "rope_parameters": {
                **_ROPE,
                "partial_rotary_factor": 0.5,
                "mrope_section": [2, 1, 1],
            }
        },
        "Glm4vMoeForConditionalGeneration",
        text_type="glm4v_moe_text",
    ),
    "glm5_next": Shape(
        {
            **_DENSE_FIRST,
            "num_key_value_heads": 4,
            "qk_rope_head_dim": 0,
            "index_kpool": 4,
            "hc_mult": 2,
            "layer_types": ["linear_attention", "linear_attention", "indexed_attention"],
        },
        "Glm5NextForConditionalGeneration",
        text_type="glm5_next_text",
    ),
    "kimi_k25": Shape(
        architecture="Kimi_K25ForConditionalGeneration",
        text_type="deepseek_v3",
        wrapper={"projection_hidden_size": 32, "tie_word_embeddings": False},
    ),
    "llama4": Shape(architecture="Llama4ForConditionalGeneration", text_type="llama4_text"),
    "minimax_m3_vl": Shape(
        architecture="MiniMaxM3SparseForConditionalGeneration",
        text_type="minimax_m3_vl_text",
        wrapper={"projector_hidden_size": 32},
    ),
    "mistral3": Shape(
        architecture="Mistral3ForConditionalGeneration",
        text_type="mistral4",
        wrapper={"tie_word_embeddings": False},
    ),
    "mistral_large4": Shape(
        {**_DENSE_FIRST, "num_key_value_heads": 4},
        "MistralLarge4ForConditionalGeneration",
        text_type="mistral_large4_text",
    ),
    "muse_spark": Shape(
        {"moe_hidden_size": 32, **_DENSE_FIRST},
        "MuseSparkForConditionalGeneration",
        text_type="muse_spark_text",
        audio={"num_hidden_layers": 4, "hidden_sizes": [16] * 4, "depths": [1] * 4},
        wrapper={"out_hidden_size": 64, "projector_hidden_size": 32},
    ),
    "qwen3_5_moe": Shape(
        architecture="Qwen3_5MoeForConditionalGeneration", text_type="qwen3_5_moe_text"
    ),
    "qwen3_omni_moe_thinker": Shape(
        architecture="Qwen3OmniMoeThinkerForConditionalGeneration",
        text_type="qwen3_omni_moe_text",
    ),
    "qwen3_vl_moe": Shape(
        architecture="Qwen3VLMoeForConditionalGeneration", text_type="qwen3_vl_moe_text"
    ),
    "qwen4_exp": Shape(architecture="Qwen4ExpForConditionalGeneration", text_type="qwen4_exp_text"),
    "step3p7": Shape(
        {
            **_DENSE_FIRST,
            "share_expert_dim": 48,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
        "Step3p7ForConditionalGeneration",
        text_type="step3p5",
    ),
}
