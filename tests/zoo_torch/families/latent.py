"""Types with latent attention: keys and values of all heads come from one narrow vector a token."""

from __future__ import annotations

from zoo_torch.shape import Shape

_HEADS = {"num_key_value_heads": 4}

TYPES: dict[str, Shape] = {
    "axk1": Shape(_HEADS),
    "axk2": Shape(_HEADS),
    "deepseek_v2": Shape(_HEADS),
    "deepseek_v3": Shape(_HEADS),
    "deepseek_v32": Shape(_HEADS),
    "deepseek_v4": Shape(),
    "dots3_note_text": Shape(_HEADS),
    "glm4_moe_lite": Shape(_HEADS),
    "glm_moe_dsa": Shape(_HEADS),
    "hy_v4": Shape(_HEADS),
    "longcat_flash": Shape({**_HEADS, "num_layers": 2, "ffn_hidden_size": 96, "expert_ffn_hidden_size": 32, "zero_expert_num": 4, "moe_topk": 3}),
    "mistral4": Shape(_HEADS),
    "mistral_large4_text": Shape(_HEADS),
}
