"""Types with recurrent or convolutional layers, whose cache cannot go back to an earlier token."""

from __future__ import annotations

from zoo_torch.shape import Shape

TYPES: dict[str, Shape] = {
    "bailing_hybrid": Shape({"num_key_value_heads": 4}),
    "glm5_next_text": Shape({"num_key_value_heads": 4}),
    "granitemoehybrid": Shape({"intermediate_size": 32}),
    "inkling_text": Shape(),
    "inkling2_text": Shape(),
    "jamba": Shape({"intermediate_size": 32, "mamba_d_state": 8, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False}),
    "kimi_linear": Shape({"num_key_value_heads": 4, "num_hidden_layers": 4}),
    "lfm2_moe": Shape({"layer_types": ["conv", "full_attention", "conv"]}),
    "minimax": Shape({"intermediate_size": 32}),
    "nemotron_h": Shape(),
    "qwen3_5_moe_text": Shape({"num_hidden_layers": 4}),
    "qwen3_next": Shape({"num_hidden_layers": 4}),
    "qwen4_exp_text": Shape({"num_hidden_layers": 4}),
    "zaya": Shape(),
}
