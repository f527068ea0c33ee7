"""What a tiny checkpoint of one model type needs beyond the sizes that all of them share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

EXPERTS = 8
"""Routed experts of every layer that has any."""
VOCABULARY = 320
"""Tokens of every model: bytes, markup, and some that no text gives."""

SIZES: Mapping[str, object] = MappingProxyType(
    {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 256,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "intermediate_size": 96,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        # Experts: the same counts under each of the names that configurations have for them.
        "num_experts": 8,
        "num_local_experts": 8,
        "n_routed_experts": 8,
        "moe_num_experts": 8,
        "num_experts_per_tok": 2,
        "num_experts_per_token": 2,
        "moe_topk": 2,
        "moe_k": 2,
        "top_k_experts": 2,
        "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 48,
        "moe_shared_expert_intermediate_size": 48,
        "shared_intermediate_size": 48,
        "n_shared_experts": 1,
        "num_shared_experts": 1,
        "moe_num_shared_experts": 1,
        "n_group": 1,
        "num_expert_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "num_dense_layers": 1,
        "num_nextn_predict_layers": 0,
        # Attention. As wide rotated in latent attention as a plain head, which some assume.
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": 16,
        "q_lora_rank": 32,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        # Of few heads all may score zero, and then ties decide which positions are attended to.
        "index_n_heads": 8,
        "index_head_dim": 32,
        "index_topk": 16,
        # Recurrent layers.
        "linear_num_heads": 4,
        "linear_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    }
)
"""Values of all fields of these names, in every text configuration that has them."""

INPUT_SIZES: Mapping[str, object] = MappingProxyType(
    {
        "hidden_size": 32,
        "d_model": 32,
        "text_hidden_size": 64,
        "out_hidden_size": 64,
        "output_dim": 64,
        "vision_output_dim": 32,
        "downsample_hidden_size": 16,
        "intermediate_size": 48,
        "encoder_ffn_dim": 48,
        "mlp_ratio": 1.5,
        "projection_intermediate_size": 32,
        "projector_input_dim": 32,
        "projector_output_dim": 32,
        "num_hidden_layers": 1,
        "encoder_layers": 1,
        "depth": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "encoder_attention_heads": 2,
        "num_heads": 2,
        "head_dim": 16,
        "image_size": 28,
        "patch_size": 14,
        "num_position_embeddings": 16,
        "max_position_embeddings": 16,
        "max_source_positions": 16,
        "pos_emb_height": 4,
        "pos_emb_width": 4,
        "deepstack_visual_indexes": [0],
    }
)
"""The same for the parts that see and hear."""


@dataclass(frozen=True)
class Shape:
    """One model type: fields of its configuration that differ from SIZES, and its class."""

    config: Mapping[str, object] = field(default_factory=dict)
    """Fields of the text configuration. None leaves a field to what the class makes of the rest."""
    architecture: str = ""
    """Class in `transformers`; empty where AutoModelForCausalLM knows the type."""
    text_type: str = ""
    """Model type of the text configuration inside, where this one also takes pictures."""
    audio: Mapping[str, object] = field(default_factory=dict)
    """Fields of the part that hears, which is never run here."""
    wrapper: Mapping[str, object] = field(default_factory=dict)
    """Fields of the configuration around all parts."""
    gains: Mapping[str, float] = field(default_factory=dict)
    """Factors for random weights by a part of their name, where routing would hardly vary."""
    read_as: str = ""
    """Type whose classes read the checkpoint, where config.json says one that has none."""
